"""A request's journey: its upload read, its images decoded and computed, all by one deadline.

Routes say what they read and what they answer; what lies between is here, for one image or for
many. The deadline counts from the end of the upload. Of a stage that many images went through,
the time that is noted is that of the image it took longest with.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from opentelemetry.trace import SpanContext

from model_store.engine import Image
from service import errors
from service.decoding.image import identify
from service.http import problems
from service.http.api_keys import ApiKeys
from service.inference.serving import Classification, Serving
from service.rate_limit import Client, RateLimiter, network
from service.settings import Settings
from service.telemetry.tracing import Tracing
from service.upload.memory import Lease

In = TypeVar("In")
Out = TypeVar("Out")

Read = Callable[[int, float, Lease], Awaitable[Out]]
"""Reads a body: most bytes, most seconds, and the share of the memory for uploads."""


@dataclass(frozen=True, slots=True)
class Provisions:
    """What a journey needs of the application."""

    settings: Settings
    serving: Serving
    keys: ApiKeys
    rates: RateLimiter | None
    tracing: Tracing | None


class Pipeline:
    """Of one request, over HTTP or gRPC."""

    def __init__(
        self,
        provisions: Provisions,
        headers: Mapping[str, str],
        client: str,
        timing: dict[str, float],
        timeout: float,
    ) -> None:
        """`headers`: the request's, names in lower case; `client`: the address it comes from;
        `timing`: where the seconds of each stage are noted; `timeout`: seconds from the end of the
        upload.

        Raises Unauthorized, RateLimited, and NotReady: why read what cannot be answered.
        """
        self._rates = provisions.rates
        self._client = _admit(provisions, headers, client)
        self.serving = provisions.serving
        self.model = provisions.serving.ready.model
        """That serves as the request begins. Another may compute it."""
        self._settings = provisions.settings
        self._tracing = provisions.tracing
        self._timing = timing
        self._timeout = timeout
        self._deadline = math.inf

    def __enter__(self) -> None:
        """Within, the bytes that are read count as held memory, until `forget`."""
        self._share = self.serving.uploads.holding()

    def __exit__(self, *_: object) -> None:
        self.forget()

    def forget(self) -> None:
        """What was read is kept no longer."""
        self._share.release()

    async def read(self, reader: Read[Out]) -> Out:
        """The body, as `reader` reads it."""
        limits = self._settings.max_upload_bytes, self._settings.upload_timeout
        began = time.perf_counter()
        body = await reader(*limits, self._share)
        ended = time.perf_counter()
        self._note("read", began, ended)
        self._deadline = ended + self._timeout
        return body

    def count(self, images: int) -> None:
        """The request holds `images` images, decodable or not. The rate limit counted one."""
        if self._rates is not None:
            self._rates.owe(self._client, images - 1, time.monotonic())

    def hurry(self, timeout: float) -> None:
        """The client wants the answer within `timeout` seconds from now."""
        self._deadline = min(self._deadline, time.perf_counter() + timeout)

    async def decode(self, data: bytes) -> Image:
        """Raises MissingImage where there are no bytes, and what `identify` and `Decoders.run`
        raise."""
        began = time.perf_counter()
        try:
            image = await self._decoded(data)
        except BaseException as error:
            self._broken_off("decode", began, error)
            raise
        self._note("decode", began, time.perf_counter())
        return image

    async def infer(self, image: Image) -> Classification:
        """Raises what `Serving.submit` raises."""
        began = time.perf_counter()
        with self._tracing.seated(image) if self._tracing else _NOWHERE as seat:
            try:
                answer = await self.serving.submit(image, self._left())
            except BaseException as error:
                self._broken_off("queue", began, error)
                raise
        handed = began + answer.queue_seconds
        self._note("queue", began, handed)
        batch = seat.batch if seat is not None else None
        self._note("infer", handed, handed + answer.infer_seconds, batch)
        return answer.value

    async def _decoded(self, data: bytes) -> Image:
        if not data:
            raise errors.MissingImage("The image is empty: it has no bytes at all. Send a file.")
        decoders = self.serving.decoders
        image = identify(data, self._settings.max_image_pixels, decoders.max_memory)
        if image.is_bounded and (pixels := image.decode_here()) is not None:
            return pixels  # sooner done than handed over
        return await decoders.run(image, self._client, self._left())

    def _left(self) -> float:
        return self._deadline - time.perf_counter()

    def _note(
        self, stage: str, began: float, ended: float, batch: SpanContext | None = None
    ) -> None:
        """A stage is done; `batch`: where it was computed, if it is traced."""
        self._timing[stage] = max(ended - began, self._timing.get(stage, 0.0))
        if self._tracing is not None:
            self._tracing.stage(stage, began, ended, batch)

    def _broken_off(self, stage: str, began: float, error: BaseException) -> None:
        if self._tracing is not None:
            self._tracing.stage(stage, began, time.perf_counter(), error=error)


_NOWHERE = nullcontext[None]()


def _admit(provisions: Provisions, headers: Mapping[str, str], client: str) -> Client:
    """Check the API key and the rate limit. Returns what identifies the client: the digest of its
    key, or else its network."""
    key = provisions.keys.check(headers) or network(client)
    if provisions.rates is not None:
        provisions.rates.take(key, time.monotonic())
    return key


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
        return [task.result() for task in tasks]
    except (ExceptionGroup, asyncio.CancelledError) as error:
        failure = error.with_traceback(None)  # it refers to a frame that refers to `error`
    first = _first_failure(failure, tasks)
    try:
        raise first
    finally:
        del failure, first, tasks  # the traceback refers to this frame


def _first_failure(failure: BaseException, tasks: list[asyncio.Task[Out]]) -> BaseException:
    """The exception of the item that failed first, with a note which one it is."""
    if not isinstance(failure, ExceptionGroup):
        return failure
    first: Exception = failure.exceptions[0]
    for number, task in enumerate(tasks):
        if len(tasks) > 1 and not task.cancelled() and task.exception() is first:
            first.add_note(f"This is image {number} of the request, counted from 0.")
    return first


def forgiving(step: Step[In, Out]) -> Step[In | Exception, Out | Exception]:
    """`step`, with what may go wrong as its outcome; what has gone wrong already is passed on."""

    async def forgiven(item: In | Exception) -> Out | Exception:
        if isinstance(item, Exception):
            return item
        try:
            return await step(item)
        except tuple(problems.PROBLEMS) as error:
            return error

    return forgiven
