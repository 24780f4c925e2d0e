"""Python client of the service: `Client`, and `AsyncClient` for asyncio.

    with Client("http://127.0.0.1:8000") as shoal:
        print(shoal.predict("horse.jpg").class_)

When the service is busy, it says when to retry, and the client does so until its `timeout` ends.
The client also sends the timeout to the service, which computes nothing for a client that no longer
waits. Errors are exceptions of `shoal.errors`. A client reuses its connections: create one client
and use it for all requests.
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
"""An encoded image: its bytes, the path of a file, or an open file that yields bytes."""
Part: TypeAlias = tuple[str, tuple[str, bytes]]
Form: TypeAlias = list[Part]

TIMEOUT = 30.0
"""Seconds for a call, waiting included, by default."""


class Client:
    """Client for synchronous code. Several threads may share one."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connects to nothing yet.

        Args:
            url: Address of the service, such as http://127.0.0.1:8000. It may have a path.
            key: API key, sent as X-API-Key. None: no key is sent.
            timeout: Seconds for each call, retries and waiting included.
            transport: httpx transport, for proxies, certificates or an application in this
                process. None: the default of httpx.

        Raises:
            ValueError: `url` is not the URL of a server.
        """
        self._http = httpx.Client(
            base_url=parse_url(url), headers=_headers(key), transport=transport
        )
        self._timeout = timeout

    def predict(self, image: Image) -> Prediction:
        """Classifies an image.

        Raises:
            NoPrediction: There is no prediction; the subclasses say why.
            OSError: A file cannot be read.
        """
        return prediction(self._request("predict", [_part(image)]))

    def predict_batch(self, images: Iterable[Image]) -> list[Prediction | Problem]:
        """Classifies several images in one request.

        Returns:
            For each image, in order, the prediction or the error of that image.

        Raises:
            NoPrediction: The request failed as a whole.
            OSError: A file cannot be read.
        """
        return predictions(self._request("predict/batch", [_part(image) for image in images]))

    def close(self) -> None:
        """Closes the connections."""
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
            # httpx bounds connecting, sending and receiving each, not their sum.
            return self._http.post(path, files=form, **_timeout_options(seconds))
        except httpx.RequestError as error:
            return error


class AsyncClient:
    """Client for asyncio. Its methods do the same as those of `Client`."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Connects to nothing yet.

        Args:
            url: Address of the service, such as http://127.0.0.1:8000. It may have a path.
            key: API key, sent as X-API-Key. None: no key is sent.
            timeout: Seconds for each call, retries and waiting included.
            transport: httpx transport, for proxies, certificates or an application in this
                process. None: the default of httpx.

        Raises:
            ValueError: `url` is not the URL of a server.
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
        """Closes the connections."""
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
    """Returns the URL of a server. Raises ValueError if `url` is not one."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url} is not the URL of a server. Write it as http://HOST:PORT")
    return parsed


def _headers(key: str | None) -> dict[str, str]:
    headers = {"User-Agent": f"shoal/{__version__}", "Accept": "application/json"}
    return headers | ({"X-API-Key": key} if key else {})


def _timeout_options(seconds: float) -> dict[str, Any]:
    """Options of httpx: its own timeout, and the header that states it to the service."""
    return {"timeout": seconds, "headers": {"X-Request-Timeout": f"{seconds:.3f}"}}


def _part(image: Image) -> Part:
    """Returns a field of the form. A file is read completely, since a retry sends it again."""
    if isinstance(image, str | os.PathLike):
        image = pathlib.Path(image).read_bytes()
    elif not isinstance(image, bytes):
        image = image.read()
    return "img", ("image", image)


async def _part_async(image: Image) -> Part:
    """Like `_part`, but reads files in a thread."""
    return _part(image) if isinstance(image, bytes) else await asyncio.to_thread(_part, image)
