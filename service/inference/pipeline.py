"""The pipeline of a request: read, decode, infer. Each protocol adds how it reads and answers.

All stages share one deadline, which starts when the upload has arrived. The pipeline also checks
the API key and the rate limit, before anything is read, and measures the seconds of each stage. If
a request has several images, the time of a stage is that of its slowest image.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol, TypeVar

from opentelemetry.trace import SpanContext
from starlette.requests import Request

from batching.batch_run import Infer
from model_store.engine import Image, Probabilities, Results
from model_store.manifest import Manifest
from service.decoding.image import identify
from service.errors import MissingImage
from service.http.context import context_of
from service.inference.service import Classification, Service
from service.rate_limit import Client, network

Body = TypeVar("Body")


class Pipeline:
    """The stages of one request, over HTTP or gRPC."""

    def __init__(
        self,
        service: Service,
        headers: Mapping[str, str],
        address: str,
        timing: dict[str, float],
        timeout: float,
    ) -> None:
        """
        Args:
            service: The service that answers the request.
            headers: Headers of the request, with names in lower case. They may contain an API key.
            address: IP address of the client.
            timing: Filled with the seconds of each stage.
            timeout: Seconds from the end of the upload to the answer.

        Raises:
            Unauthorized: There is no valid API key.
            RateLimited: The client has sent too many images.
            NotReady: No model is loaded.
        """
        self._service = service
        self._address = address
        self._key = service.keys.check(headers) if service.keys.required else None
        if service.rate_limiter is not None:
            service.rate_limiter.take(self._client(), time.monotonic())
        self.model = self.current_model()
        """The model that serves when the request begins. Another one may compute it."""
        self._timing = timing
        self._timeout = timeout
        self._deadline = math.inf

    def current_model(self) -> Manifest:
        """The model that serves now. Raises NotReady."""
        loaded = self._service.engine.loaded
        if loaded is None:
            raise self._service.not_loaded()
        return loaded.model

    def count_images(self, count: int) -> None:
        """Tell the rate limit that the request has `count` images. So far it counted one."""
        if self._service.rate_limiter is not None:
            self._service.rate_limiter.owe(self._client(), count - 1, time.monotonic())

    def shorten_deadline(self, timeout: float) -> None:
        """The client needs the answer within `timeout` seconds from now."""
        self._deadline = min(self._deadline, time.perf_counter() + timeout)

    async def read(self, body: Awaitable[Body]) -> Body:
        """Wait for `body`, which reads the upload. The deadline starts when it has been read."""
        began = time.perf_counter()
        result = await body
        ended = time.perf_counter()
        self._record("read", began, ended)
        self._deadline = ended + self._timeout
        return result

    async def decode(self, data: bytes) -> Image:
        """Decode one image.

        Raises MissingImage if `data` is empty, and what `identify` and `Decoders.run` raise.
        """
        began = time.perf_counter()
        try:
            image = await self._decode(data)
        except BaseException as error:
            self._record_failure("decode", began, error)
            raise
        self._record("decode", began, time.perf_counter())
        return image

    async def infer(self, image: Image) -> Classification:
        """Compute one image in a batch with others. Raises NotReady, and what `Submit` raises."""
        began = time.perf_counter()
        loaded = self._service.engine.loaded
        if loaded is None:
            raise self._service.not_loaded()
        tracing = self._service.tracing
        with tracing.waiting(image) if tracing else _NO_SEAT as seat:
            try:
                answer = await loaded.submit(image, self._seconds_left())
            except BaseException as error:
                self._record_failure("queue", began, error)
                raise
        dispatched = began + answer.queue_seconds
        self._record("queue", began, dispatched)
        batch = seat.batch if seat is not None else None
        self._record("infer", dispatched, dispatched + answer.infer_seconds, batch)
        return answer.value

    async def _decode(self, data: bytes) -> Image:
        if not data:
            raise MissingImage("The image is empty: it has no bytes at all. Send a file.")
        decoders = self._service.decoders
        image = identify(data, self._service.settings.max_image_pixels, decoders.max_memory)
        if image.is_bounded and (pixels := image.decode_here()) is not None:
            return pixels  # faster than handing it to a decoder process
        return await decoders.run(image, self._client(), self._seconds_left())

    def _client(self) -> Client:
        """Tells clients apart: the digest of the API key, or else the client's network."""
        return self._key or network(self._address)

    def _seconds_left(self) -> float:
        return self._deadline - time.perf_counter()

    def _record(
        self, stage: str, began: float, ended: float, batch: SpanContext | None = None
    ) -> None:
        """Record a stage. `batch` is the span of the batch that computed it, if it is traced."""
        self._timing[stage] = max(ended - began, self._timing.get(stage, 0.0))
        if self._service.tracing is not None:
            self._service.tracing.stage(stage, began, ended, batch)

    def _record_failure(self, stage: str, began: float, error: BaseException) -> None:
        if self._service.tracing is not None:
            self._service.tracing.stage(stage, began, time.perf_counter(), error=error)


class BatchEngine(Protocol):
    """Computes batches. `model` is the version that the next call of `infer` uses."""

    @property
    def model(self) -> Manifest: ...

    async def infer(self, images: Sequence[Image]) -> Sequence[Probabilities | Exception]: ...


def classifier(engine: BatchEngine) -> Infer[Image, Classification]:
    """The batch function of the batcher: computes images, and adds the model to each result."""

    async def infer(images: Sequence[Image]) -> Sequence[Classification | Exception]:
        model = engine.model  # the version cannot change between this line and the call
        rows = await engine.infer(images)
        results = [
            row if isinstance(row, Exception) else Classification(model, row) for row in rows
        ]
        return Results(results, rows.computed_at) if isinstance(rows, Results) else results

    return infer


def service_of(request: Request) -> Service:
    """The service of the application that handles `request`."""
    service: Service = request.app.state.service
    return service


def begin(request: Request) -> Pipeline:
    """The pipeline of a request over HTTP. Raises BadTimeout, and what `Pipeline` raises."""
    service, context = service_of(request), context_of(request.scope)
    timeout = context.timeout(service.settings.request_timeout)
    client = request.scope.get("client")
    address = client[0] if client else ""
    return Pipeline(service, request.headers, address, context.timing, timeout)


_NO_SEAT = nullcontext[None]()
