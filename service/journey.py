"""A request's journey: its upload read, its images decoded and computed, all by one deadline.

Routes say what they read and what they answer; what lies between is here, for one image or for
many. The deadline counts from the end of the upload. Of a stage that many images went through,
the time that is noted is that of the image it took longest with.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import Request

from model_store.engine import Image
from model_store.manifest import Manifest
from service import decode, errors
from service.budget import Share
from service.keys import Keys
from service.rates import Rates, network
from service.serving import Classified, Serving
from service.settings import Settings

In = TypeVar("In")
Out = TypeVar("Out")

Read = Callable[[Request, int, float, Share], Awaitable[Out]]
"""Reads a body: request, most bytes, most seconds, and the share of the memory for uploads."""


class Journey:
    """Of one request. Raises Unauthorized, RateLimited, and NotReady: why read what cannot be
    answered."""

    def __init__(self, request: Request, timeout: float) -> None:
        _admit(request)
        self._request = request
        self._serving: Serving = request.app.state.serving
        self._settings: Settings = request.app.state.settings
        self._timing: dict[str, float] = request.state.timing
        self.model: Manifest = self._serving.ready.model
        """That serves as the request begins. Another may compute it."""
        self._timeout = timeout
        self._deadline = math.inf

    @contextmanager
    def reading(self) -> Iterator[Callable[[Read[Out]], Awaitable[Out]]]:
        """Within, call what is given with what reads the body; its bytes count as held memory
        until the end."""
        with self._serving.uploads.holding() as share:

            async def read(reader: Read[Out]) -> Out:
                limits = self._settings.max_upload_bytes, self._settings.upload_timeout
                began = time.perf_counter()
                body = await reader(self._request, *limits, share)
                self._note("read", time.perf_counter() - began)
                self._deadline = time.perf_counter() + self._timeout
                return body

            yield read

    def hurry(self, timeout: float) -> None:
        """The body says that the answer is wanted within `timeout` seconds."""
        self._deadline = min(self._deadline, time.perf_counter() + timeout)

    async def decode(self, data: bytes) -> Image:
        """Raises MissingImage where there are no bytes, and what `decode` and `Decoders.run`
        raise."""
        if not data:
            raise errors.MissingImage("The image is empty: it has no bytes at all. Send a file.")
        began = time.perf_counter()
        upload = decode.identify(data, self._settings.max_image_pixels)
        if upload.is_small:
            image = upload.decode()  # sooner done than handed over
        else:
            image = await self._serving.decoders.run(upload, self._left())
        self._note("decode", time.perf_counter() - began)
        return image

    async def infer(self, image: Image) -> Classified:
        """Raises what `Serving.submit` raises."""
        answer = await self._serving.submit(image, self._left())
        self._note("queue", answer.queue_seconds)
        self._note("infer", answer.infer_seconds)
        return answer.value

    def _left(self) -> float:
        return self._deadline - time.perf_counter()

    def _note(self, stage: str, seconds: float) -> None:
        self._timing[stage] = max(seconds, self._timing.get(stage, 0.0))


def _admit(request: Request) -> None:
    """By key and, where there is a limit, by how often this client asks."""
    keys: Keys = request.app.state.keys
    key = keys.check(request.headers)
    rates: Rates | None = request.app.state.rates
    if rates is not None:
        address = request.client.host if request.client else ""
        rates.take(key or network(address), time.monotonic())


Step = Callable[[In], Coroutine[Any, Any, Out]]


async def each(step: Step[In, Out], items: Iterable[In], pause: bool = False) -> list[Out]:
    """`step` of every item, all under way together; in the order of `items`.

    The first that fails ends the others, and its exception is raised. `pause` lets other requests
    have a turn between two items, for steps that begin with some work.
    """
    tasks: list[asyncio.Task[Out]] = []
    try:
        async with asyncio.TaskGroup() as group:
            for item in items:
                tasks.append(group.create_task(step(item)))
                if pause:
                    await asyncio.sleep(0)
    except ExceptionGroup as failed:
        first: Exception = failed.exceptions[0]
        for number, task in enumerate(tasks):
            if len(tasks) > 1 and not task.cancelled() and task.exception() is first:
                first.add_note(f"This is image {number} of the request, counted from 0.")
        raise first from None
    return [task.result() for task in tasks]


def forgiving(step: Step[In, Out]) -> Step[In | Exception, Out | Exception]:
    """`step`, with what may go wrong as its outcome; what has gone wrong already is passed on."""

    async def forgiven(item: In | Exception) -> Out | Exception:
        if isinstance(item, Exception):
            return item
        try:
            return await step(item)
        except tuple(errors.PROBLEMS) as error:
            return error

    return forgiven
