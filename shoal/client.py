"""Python client of the service: `Client`, and `AsyncClient` for asyncio.

    with Client("http://127.0.0.1:8000") as shoal:
        print(shoal.predict("horse.jpg").class_)

If the service is busy, its response says when to retry. The client then waits and retries until the
client's `timeout` has passed. Each request contains the remaining time, so that the service does
not classify images for a client that has stopped waiting. Errors are exceptions of `shoal.errors`.
A client reuses its connections, so create one client and use it for all requests.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import random
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

import httpx

from shoal import __version__
from shoal.errors import Problem
from shoal.prediction import Prediction, prediction, predictions
from shoal.retry import Reply, Retry, Wait

__all__ = ["AsyncClient", "Client", "Image", "Prediction", "Problem"]

Image: TypeAlias = bytes | str | os.PathLike[str] | BinaryIO
"""An encoded image: its bytes, the path of a file, or a file that is open in binary mode."""
Part: TypeAlias = tuple[str, tuple[str, bytes]]
Form: TypeAlias = list[Part]

TIMEOUT = 30.0
"""Default maximum number of seconds for a call, including retries."""


class Client:
    """Client for synchronous code. Several threads may use the same client."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Creates a client. The client connects when it sends its first request.

        Args:
            url: URL of the service, such as http://127.0.0.1:8000. The URL may have a path.
            key: API key, which is sent in the header X-API-Key. None: no key is sent.
            timeout: Maximum number of seconds for each call, including retries and the waits
                between them.
            transport: httpx transport, for example to use a proxy or to call an application in this
                process. None: httpx's default transport.

        Raises:
            ValueError: `url` is not an http or https URL with a host.
        """
        self._http = httpx.Client(
            base_url=parse_url(url), headers=_headers(key), transport=transport
        )
        self._timeout = timeout

    def predict(self, image: Image) -> Prediction:
        """Classifies one image.

        Raises:
            NoPrediction: There is no prediction. The subclass states the reason.
            OSError: A file cannot be read.
        """
        return prediction(self._request("predict", [_part(image)]))

    def predict_batch(self, images: Iterable[Image]) -> list[Prediction | Problem]:
        """Classifies several images in one request.

        Returns:
            The prediction or the error of each image, in the order of `images`.

        Raises:
            NoPrediction: The whole request failed.
            OSError: A file cannot be read.
        """
        return predictions(self._request("predict/batch", [_part(image) for image in images]))

    def close(self) -> None:
        """Closes all connections of this client."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _request(self, path: str, form: Form) -> httpx.Response:
        retry = Retry(self._timeout, time.monotonic, random.random())
        while True:
            step = retry.after(self._attempt(path, form, retry.remaining))
            if not isinstance(step, Wait):
                return step
            time.sleep(step.seconds)

    def _attempt(self, path: str, form: Form, seconds: float) -> Reply:
        try:
            # httpx applies the timeout to connecting, sending and receiving separately.
            return self._http.post(path, files=form, **_timeout_options(seconds))
        except httpx.RequestError as error:
            return error


class AsyncClient:
    """Client for asyncio, with the same methods as `Client`."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Creates a client. The client connects when it sends its first request.

        Args:
            url: URL of the service, such as http://127.0.0.1:8000. The URL may have a path.
            key: API key, which is sent in the header X-API-Key. None: no key is sent.
            timeout: Maximum number of seconds for each call, including retries and the waits
                between them.
            transport: httpx transport, for example to use a proxy or to call an application in this
                process. None: httpx's default transport.

        Raises:
            ValueError: `url` is not an http or https URL with a host.
        """
        self._http = httpx.AsyncClient(
            base_url=parse_url(url), headers=_headers(key), transport=transport
        )
        self._timeout = timeout

    async def predict(self, image: Image) -> Prediction:
        """Classifies an image, as `Client.predict` does."""
        return prediction(await self._request("predict", [await _part_async(image)]))

    async def predict_batch(self, images: Iterable[Image]) -> list[Prediction | Problem]:
        """Classifies several images in one request, as `Client.predict_batch` does."""
        form = [await _part_async(image) for image in images]
        return predictions(await self._request("predict/batch", form))

    async def close(self) -> None:
        """Closes all connections of this client."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _request(self, path: str, form: Form) -> httpx.Response:
        retry = Retry(self._timeout, asyncio.get_running_loop().time, random.random())
        while True:
            step = retry.after(await self._attempt(path, form, retry.remaining))
            if not isinstance(step, Wait):
                return step
            await asyncio.sleep(step.seconds)

    async def _attempt(self, path: str, form: Form, seconds: float) -> Reply:
        try:
            async with asyncio.timeout(seconds):
                return await self._http.post(path, files=form, **_timeout_options(seconds))
        except (httpx.RequestError, TimeoutError) as error:
            return error


def parse_url(url: str) -> httpx.URL:
    """Parses the URL of a server. Raises ValueError unless `url` is an http(s) URL with a host."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url} is not the URL of a server. Write the URL as http://HOST:PORT")
    return parsed


def _headers(key: str | None) -> dict[str, str]:
    headers = {"User-Agent": f"shoal/{__version__}", "Accept": "application/json"}
    return headers | ({"X-API-Key": key} if key else {})


def _timeout_options(seconds: float) -> dict[str, Any]:
    """Returns options for httpx: a timeout, and a header that sends the timeout to the service."""
    return {"timeout": seconds, "headers": {"X-Request-Timeout": f"{seconds:.3f}"}}


def _part(image: Image) -> Part:
    """Returns a form field. Reads the whole file, because a retry sends the same bytes again."""
    if isinstance(image, str | os.PathLike):
        image = pathlib.Path(image).read_bytes()
    elif not isinstance(image, bytes):
        image = image.read()
    return "img", ("image", image)


async def _part_async(image: Image) -> Part:
    """Returns a form field, as `_part` does, but reads files in a thread."""
    return _part(image) if isinstance(image, bytes) else await asyncio.to_thread(_part, image)
