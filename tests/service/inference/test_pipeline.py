"""Tests the stages of one request: who may begin it, its deadline, its timing, and its model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from batching import Answer
from model_store.engine import Image, Probabilities, Results
from service.decoding.image import EncodedImage, Pixels
from service.errors import BadImage, MissingImage, NotReady, RateLimited, Unauthorized, Unloaded
from service.http.api_keys import ApiKeys
from service.inference.pipeline import Pipeline, classifier
from service.inference.service import Classification, LoadedModel, Service
from service.rate_limit import Client, RateLimiter
from service.settings import Settings
from tests.fakes import MODEL, FakeEngine
from tests.service.conftest import png

KEY = "one-key-of-many-letters"
PIXELS = np.zeros((32, 32, 3), np.uint8)


class Host:
    """An engine that takes half a second for each image, a quarter of it in the queue."""

    def __init__(self) -> None:
        self.timeouts: list[float] = []
        self.unloaded = False
        self.loaded: LoadedModel | None = LoadedModel(
            MODEL, FakeEngine.device, FakeEngine.backend, FakeEngine.precision, self.submit
        )

    async def submit(
        self,
        image: Image,
        timeout: float,  # noqa: ASYNC109  # as `Batcher.submit`
    ) -> Answer[Classification]:
        self.timeouts.append(timeout)
        return Answer(Classification(MODEL, np.array([1.0], np.float32)), 0.125, 0.375, 1, 1)


class FakeDecoders:
    max_memory = 2**29

    def __init__(self) -> None:
        self.calls: list[tuple[int, Client, float]] = []

    async def run(self, image: EncodedImage, client: Client, max_seconds: float) -> Pixels:
        self.calls.append((image.pixels, client, max_seconds))
        return PIXELS


class Parts:
    """A service with only the parts that a pipeline uses."""

    def __init__(self, keys: str = "", rate_limiter: RateLimiter | None = None) -> None:
        self.host, self.decoders = Host(), FakeDecoders()
        self.timing: dict[str, float] = {}
        nothing = cast(Any, None)
        self.service = Service(
            settings=Settings(),
            engine=cast(Any, self.host),
            decoders=cast(Any, self.decoders),
            repository=nothing,
            uploads=nothing,
            keys=ApiKeys(keys),
            admin_keys=nothing,
            rate_limiter=rate_limiter,
            metrics=nothing,
            tracing=None,
        )

    def begin(self, key: str = "", address: str = "192.0.2.1", timeout: float = 5.0) -> Pipeline:
        headers = {"x-api-key": key} if key else {}
        return Pipeline(self.service, headers, address, self.timing, timeout)


async def body() -> bytes:
    return b"body"


def test_pipeline_requires_a_key_before_it_counts() -> None:
    """A request without a valid key is rejected, and counts for no client."""
    parts = Parts(KEY, RateLimiter(0.001, 1))
    for _ in range(3):
        with pytest.raises(Unauthorized):
            parts.begin("another-key-of-letters")
    parts.begin(KEY)
    with pytest.raises(RateLimited):
        parts.begin(KEY)


@pytest.mark.parametrize(
    ("keys", "first", "second", "is_same"),
    [
        ("", ("", "192.0.2.1"), ("", "192.0.2.1"), True),
        ("", ("", "192.0.2.1"), ("", "192.0.2.2"), False),
        ("", ("", "2001:db8::1"), ("", "2001:db8::2"), True),
        (f"{KEY},{KEY}2", (KEY, "192.0.2.1"), (KEY, "192.0.2.2"), True),
        (f"{KEY},{KEY}2", (KEY, "192.0.2.1"), (f"{KEY}2", "192.0.2.1"), False),
    ],
    ids=["address", "two addresses", "IPv6 network", "key", "two keys"],
)
def test_pipeline_tells_clients_apart(
    keys: str, first: tuple[str, str], second: tuple[str, str], is_same: bool
) -> None:
    """A client is an API key where keys are required, and otherwise a network."""
    parts = Parts(keys, RateLimiter(0.001, 1))
    parts.begin(*first)
    if is_same:
        with pytest.raises(RateLimited):
            parts.begin(*second)
    else:
        parts.begin(*second)


def test_pipeline_counts_all_images_of_a_request() -> None:
    """A request counts as one image when it begins. `count_images` adds the others."""
    parts = Parts(rate_limiter=RateLimiter(0.001, 4))
    parts.begin().count_images(3)
    parts.begin()
    with pytest.raises(RateLimited):
        parts.begin()


@pytest.mark.parametrize(("unloaded", "error"), [(False, NotReady), (True, Unloaded)])
async def test_pipeline_needs_a_model(unloaded: bool, error: type[Exception]) -> None:
    """Without a model a request is rejected when it begins, and when it reaches the engine."""
    parts = Parts()
    begun = parts.begin()
    parts.host.loaded, parts.host.unloaded = None, unloaded
    with pytest.raises(NotReady) as early:
        parts.begin()
    with pytest.raises(NotReady) as late:
        await begun.infer(PIXELS)
    assert early.type is late.type is error


async def test_pipeline_deadline_starts_after_the_upload() -> None:
    """Until the upload has been read there is no deadline, and then all stages share one."""
    parts = Parts()
    one = parts.begin(timeout=5.0)
    await one.infer(PIXELS)
    assert await one.read(body()) == b"body"
    await one.decode(png(7, side=300))
    await one.infer(PIXELS)
    no_deadline, left = parts.host.timeouts
    ((_, client, left_to_decode),) = parts.decoders.calls
    assert no_deadline == math.inf
    assert 0 < left < left_to_decode < 5.0
    assert client == "192.0.2.1"


async def test_pipeline_deadline_can_only_be_shortened() -> None:
    """The client may need the answer earlier, and gets no more time than the request has."""
    parts = Parts()
    one = parts.begin(timeout=50.0)
    await one.read(body())
    for timeout in 10.0, 100.0:
        one.shorten_deadline(timeout)
        await one.infer(PIXELS)
        assert 0 < parts.host.timeouts[-1] <= 10.0


async def test_pipeline_decodes_small_images_itself() -> None:
    """Small plain images are not handed to a decoder process, and larger ones are."""
    parts = Parts()
    assert (await parts.begin().decode(png(7)))[0, 0, 0] == 7
    assert parts.decoders.calls == []
    await parts.begin().decode(png(7, side=300))
    assert [pixels for pixels, _, _ in parts.decoders.calls] == [90_000]


@pytest.mark.parametrize(("data", "error"), [(b"", MissingImage), (b"hello", BadImage)])
async def test_pipeline_rejects_what_is_no_image(data: bytes, error: type[Exception]) -> None:
    """An empty upload is a missing image. A stage that fails has no time in the answer."""
    parts = Parts()
    with pytest.raises(error):
        await parts.begin().decode(data)
    assert parts.timing == {}


async def test_pipeline_measures_each_stage() -> None:
    """The time in the engine is split into queue and inference, as the batcher reports it."""
    parts = Parts()
    one = parts.begin()
    await one.read(body())
    await one.decode(png(7))
    result = await one.infer(PIXELS)
    assert result.model is MODEL
    assert list(parts.timing) == ["read", "decode", "queue", "infer"]
    assert parts.timing["queue"] == pytest.approx(0.125)
    assert parts.timing["infer"] == pytest.approx(0.375)


async def test_pipeline_reports_the_slowest_image() -> None:
    """The time of a stage is that of the image that took longest."""
    parts = Parts()
    one = parts.begin()
    await one.decode(png(7))
    for seconds in 9.0, 0.0:
        parts.timing["decode"] = seconds
        await one.decode(png(7))
        assert (parts.timing["decode"] == 9.0) == (seconds == 9.0)


class Batches:
    """Computes batches by rule. Another model serves as soon as a batch has begun."""

    def __init__(self, rows: Sequence[Probabilities | Exception]) -> None:
        self.model = MODEL
        self._rows = rows

    async def infer(self, images: Sequence[Image]) -> Sequence[Probabilities | Exception]:
        self.model = MODEL.model_copy(update={"version": "8"})
        return self._rows


async def test_classifier_names_the_model_that_computed() -> None:
    """Each result has the model that served when the batch began, and exceptions stay as they
    are. The time at which the engine was done is kept."""
    row, error = np.array([0.5, 0.5], np.float32), RuntimeError()
    first, second = await classifier(Batches([row, error]))([PIXELS, PIXELS])
    assert isinstance(first, Classification) and second is error
    assert first.model is MODEL and first.probabilities is row
    timed = await classifier(Batches(Results([row], 12.5)))([PIXELS])
    assert isinstance(timed, Results) and timed.computed_at == 12.5
