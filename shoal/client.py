"""A client of the service, for programs: `Client`, and `AsyncClient` for those that await.

    with Client("http://127.0.0.1:8000") as shoal:
        print(shoal.predict("horse.jpg").class_)

A busy service says when to come back, and the client does so as long as its `timeout` lasts, which
the service is told as well: it computes nothing for who has stopped waiting. What fails raises one
of `shoal.errors`. Clients keep their connections: make one and use it for everything.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import random
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

import httpx

from shoal import __version__
from shoal.errors import Problem
from shoal.exchange import Exchange, Reply, Wait
from shoal.prediction import Prediction, prediction, predictions

__all__ = ["AsyncClient", "Client", "Image", "Prediction", "Problem"]

Image: TypeAlias = bytes | str | os.PathLike[str] | BinaryIO
"""An encoded image: its bytes, the path of a file, or an open file that yields bytes."""
Part: TypeAlias = tuple[str, tuple[str, bytes]]
Form: TypeAlias = list[Part]

TIMEOUT = 30.0
"""Seconds for a call, waiting included, unless the client is made with others."""


class Client:
    """Of the service at `url`, with `key` where it wants one. Threads may share it."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`transport` is for those who bring proxies, certificates or a server of their own.

        Raises ValueError where `url` is none.
        """
        self._http = httpx.Client(base_url=checked(url), headers=_headers(key), transport=transport)
        self._timeout = timeout

    def predict(self, image: Image) -> Prediction:
        """The class of an image. Raises NoPrediction, and OSError where a file cannot be read."""
        return prediction(self._ask("predict", [_part(image)]))

    def predict_batch(self, images: Iterable[Image]) -> list[Prediction | Problem]:
        """The classes of several, in their order; in place of one that failed, why.

        Raises NoPrediction where the request failed as a whole, and OSError.
        """
        return predictions(self._ask("predict/batch", [_part(image) for image in images]))

    def close(self) -> None:
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

    def _ask(self, path: str, form: Form) -> httpx.Response:
        exchange = _exchange(self._timeout)
        while True:
            outcome = exchange.after(self._send(path, form, exchange.left))
            if not isinstance(outcome, Wait):
                return outcome
            time.sleep(outcome.seconds)

    def _send(self, path: str, form: Form, left: float) -> Reply:
        try:
            # Each of connecting, sending and receiving may take what is left: threads have no
            # way to bound them together.
            return self._http.post(path, files=form, **_within(left))
        except httpx.RequestError as error:
            return error


class AsyncClient:
    """The same for asyncio; what `Client` says holds here."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=checked(url), headers=_headers(key), transport=transport
        )
        self._timeout = timeout

    async def predict(self, image: Image) -> Prediction:
        """As `Client.predict`."""
        return prediction(await self._ask("predict", [await _part_async(image)]))

    async def predict_batch(self, images: Iterable[Image]) -> list[Prediction | Problem]:
        """As `Client.predict_batch`."""
        form = [await _part_async(image) for image in images]
        return predictions(await self._ask("predict/batch", form))

    async def close(self) -> None:
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

    async def _ask(self, path: str, form: Form) -> httpx.Response:
        exchange = _exchange(self._timeout, asyncio.get_running_loop().time)
        while True:
            outcome = exchange.after(await self._send(path, form, exchange.left))
            if not isinstance(outcome, Wait):
                return outcome
            await asyncio.sleep(outcome.seconds)

    async def _send(self, path: str, form: Form, left: float) -> Reply:
        try:
            async with asyncio.timeout(left):
                return await self._http.post(path, files=form, **_within(left))
        except (httpx.RequestError, TimeoutError) as error:
            return error


def _exchange(timeout: float, now: Callable[[], float] = time.monotonic) -> Exchange:
    return Exchange(timeout, now, random.random())


def checked(url: str) -> httpx.URL:
    """Raises ValueError where `url` is none of a server."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url} is no URL of a server: http://HOST:PORT")
    return parsed


def _headers(key: str | None) -> dict[str, str]:
    headers = {"User-Agent": f"shoal/{__version__}", "Accept": "application/json"}
    return headers | ({"X-API-Key": key} if key else {})


def _within(seconds: float) -> dict[str, Any]:
    """How httpx and the service are told of the time that is left."""
    return {"timeout": seconds, "headers": {"X-Request-Timeout": f"{seconds:.3f}"}}


def _part(image: Image) -> Part:
    """A field of the form. Read whole: it may have to be sent again."""
    if isinstance(image, str | os.PathLike):
        image = pathlib.Path(image).read_bytes()
    elif not isinstance(image, bytes):
        image = image.read()
    return "img", ("image", image)


async def _part_async(image: Image) -> Part:
    """Others may run while the disk is read."""
    return _part(image) if isinstance(image, bytes) else await asyncio.to_thread(_part, image)
