"""Implements the stages of a request: read the upload, and decode and classify its images.

HTTP and gRPC requests use the same stages. Only reading the upload and building the response differ
between protocols, and are not part of this module. Before the upload is read, the pipeline checks
the API key and the rate limit. The timeout of the request starts when the whole upload has arrived.
The pipeline measures the duration of each stage. If a request has several images, the duration of
the slowest image counts for each stage.
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
            service: The service that handles the request.
            headers: Headers of the request, with names in lower case. The headers contain the API
                key, if the client sent an API key.
            address: IP address of the client.
            timing: Dictionary to which the duration of each stage is added, in seconds.
            timeout: Maximum number of seconds from the end of the upload to the result.

        Raises:
            Unauthorized: The service requires an API key, and the request has no valid API key.
            RateLimited: The client has sent too many images.
            NotReady: No model is loaded.
        """
        self._service = service
        self._address = address
        self._key = service.keys.check(headers) if service.keys.required else None
        if service.rate_limiter is not None:
            service.rate_limiter.take(self._client(), time.monotonic())
        self.model = self.current_model()
        """The model that was loaded when the request began. A newer version may classify the
        images."""
        self._timing = timing
        self._timeout = timeout
        self._deadline = math.inf

    def current_model(self) -> Manifest:
        """Return the loaded model. Raises NotReady if no model is loaded."""
        loaded = self._service.engine.loaded
        if loaded is None:
            raise self._service.not_loaded()
        return loaded.model

    def count_images(self, count: int) -> None:
        """Count the images of the request for the rate limit.

        The constructor has already counted one image.
        """
        if self._service.rate_limiter is not None:
            self._service.rate_limiter.owe(self._client(), count - 1, time.monotonic())

    def shorten_deadline(self, timeout: float) -> None:
        """Set the deadline to `timeout` seconds from now. An earlier deadline stays unchanged."""
        self._deadline = min(self._deadline, time.perf_counter() + timeout)

    async def read(self, body: Awaitable[Body]) -> Body:
        """Await `body`, which reads the upload, and set the deadline. Returns the result of
        `body`."""
        began = time.perf_counter()
        result = await body
        ended = time.perf_counter()
        self._record("read", began, ended)
        self._deadline = ended + self._timeout
        return result

    async def decode(self, data: bytes) -> Image:
        """Decode one image.

        Raises MissingImage if `data` is empty, and the exceptions of `identify` and `Decoders.run`.
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
        """Classify one image, in a batch with images of other requests.

        Raises NotReady if no model is loaded, and the exceptions of
        `service.inference.service.Submit`.
        """
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
            raise MissingImage("The image is empty: it has 0 bytes. Send an image file.")
        decoders = self._service.decoders
        image = identify(data, self._service.settings.max_image_pixels, decoders.max_memory)
        if image.is_bounded and (pixels := image.decode_here()) is not None:
            return pixels  # decoded in this process, which is faster than in a decoder process
        return await decoders.run(image, self._client(), self._seconds_left())

    def _client(self) -> Client:
        """Return the identity of the client: the digest of its API key, or else its IP address or
        network."""
        return self._key or network(self._address)

    def _seconds_left(self) -> float:
        return self._deadline - time.perf_counter()

    def _record(
        self, stage: str, began: float, ended: float, batch: SpanContext | None = None
    ) -> None:
        """Record the duration of a stage.

        `batch`: span of the batch that contained the image. None: the stage is not inference, or
        the batch is not traced.
        """
        self._timing[stage] = max(ended - began, self._timing.get(stage, 0.0))
        if self._service.tracing is not None:
            self._service.tracing.stage(stage, began, ended, batch)

    def _record_failure(self, stage: str, began: float, error: BaseException) -> None:
        if self._service.tracing is not None:
            self._service.tracing.stage(stage, began, time.perf_counter(), error=error)


class BatchEngine(Protocol):
    """Runs batches. `model` is the version that the next call of `infer` will use."""

    @property
    def model(self) -> Manifest: ...

    async def infer(self, images: Sequence[Image]) -> Sequence[Probabilities | Exception]: ...


def classifier(engine: BatchEngine) -> Infer[Image, Classification]:
    """Return a function that runs a batch and adds the model to each result.

    The batcher calls this function.
    """

    async def infer(images: Sequence[Image]) -> Sequence[Classification | Exception]:
        model = engine.model  # without an await before the call, the version cannot change
        rows = await engine.infer(images)
        results = [
            row if isinstance(row, Exception) else Classification(model, row) for row in rows
        ]
        return Results(results, rows.computed_at) if isinstance(rows, Results) else results

    return infer


def service_of(request: Request) -> Service:
    """Return the service of the application that handles `request`."""
    service: Service = request.app.state.service
    return service


def begin(request: Request) -> Pipeline:
    """Create the pipeline of an HTTP request.

    Raises BadTimeout if the timeout header of the request is invalid, and the exceptions of
    `Pipeline`.
    """
    service, context = service_of(request), context_of(request.scope)
    timeout = context.timeout(service.settings.request_timeout)
    client = request.scope.get("client")
    address = client[0] if client else ""
    return Pipeline(service, request.headers, address, context.timing, timeout)


# Without tracing, this object replaces the context manager that links an image to the trace of its
# batch.
_NO_SEAT = nullcontext[None]()
