"""Tests what the Open Inference Protocol does in the same way over REST and over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from model_store.engine import Image
from model_store.manifest import Manifest
from service.errors import BadImage, BadInference, NotReady, UnknownModel
from service.inference.pipeline import Pipeline
from service.inference.service import Classification, LoadedModel, Service
from service.v2.common import (
    by_one_version,
    check_named,
    decoded,
    model_metadata,
    served,
    server_metadata,
)
from service.v2.inputs import InferInputs
from service.v2.outputs import Reply
from service.v2.tensor_data import Encoded
from tests.fakes import MODEL, FakeEngine


def image(red: int) -> Image:
    return np.full((32, 32, 3), red, np.uint8)


def reds(images: list[Image]) -> list[int]:
    return [int(one[0, 0, 0]) for one in images]


class FakePipeline:
    """Decodes a file to its first byte, and computes an image by the version that serves."""

    def __init__(self, serving: str) -> None:
        """`serving`: a digit for each call of `infer`, the version that serves until then. The last
        one goes on to serve. `-`: no model is loaded."""
        self.counted: list[int] = []
        self.inferred: list[int] = []
        self._serving = serving

    def count_images(self, count: int) -> None:
        self.counted.append(count)

    def current_model(self) -> Manifest:
        serves = self._serving[min(len(self.inferred), len(self._serving) - 1)]
        if serves == "-":
            raise NotReady
        return MODEL.model_copy(update={"version": serves})

    async def decode(self, data: bytes) -> Image:
        assert self.counted, "the images are counted before the first one is decoded"
        if data.startswith(b"?"):
            raise BadImage("damaged")
        return image(data[0])

    async def infer(self, image: Image) -> Classification:
        model = self.current_model()
        self.inferred.append(int(image[0, 0, 0]))
        await asyncio.sleep(0)
        return Classification(model, np.array([image[0, 0, 0]], np.float32))


def pipeline(serving: str = "7") -> tuple[FakePipeline, Pipeline]:
    fake = FakePipeline(serving)
    return fake, cast(Pipeline, fake)


def summary(results: list[Classification]) -> list[tuple[str, int]]:
    """Version and image of each result."""
    return [(result.model.version, int(result.probabilities[0])) for result in results]


def inputs(*encoded: Encoded, pixels: list[Image] | None = None) -> InferInputs:
    return InferInputs(Reply(None, []), None, encoded, pixels or [])


@pytest.mark.parametrize(
    ("repository", "extensions"),
    [
        (False, ["binary_tensor_data", "classification"]),
        (True, ["binary_tensor_data", "classification", "model_repository"]),
    ],
)
def test_server_metadata_lists_enabled_extensions(repository: bool, extensions: list[str]) -> None:
    """The extension `model_repository` is listed if it is enabled."""
    metadata = {"name": "shoal", "version": "9.9.9", "extensions": extensions}
    assert server_metadata("9.9.9", repository) == metadata


def test_model_metadata_describes_the_model() -> None:
    """Name and version are those of the model, and `probabilities` has one value per class."""
    model = MODEL.model_copy(update={"name": "pets", "version": "3", "classes": ("cat", "dog")})
    metadata = model_metadata(model)
    assert (metadata["name"], metadata["versions"]) == ("pets", ["3"])
    shapes = {one["name"]: one["shape"] for one in metadata["outputs"]}
    assert shapes == {"class": [-1], "probability": [-1], "probabilities": [-1, 2]}


@pytest.mark.parametrize("number", [None, "", "7"])
def test_check_named_accepts_the_served_model(number: str | None) -> None:
    """No version, or an empty one as in gRPC, stands for any version."""
    check_named(MODEL, "fake", number)


@pytest.mark.parametrize(
    ("name", "number"), [("other", None), ("other", "7"), ("fake", "8"), ("fake", "07"), ("", "")]
)
def test_check_named_rejects_other_models(name: str, number: str | None) -> None:
    """Another name or version is an error, which names the served model and its version."""
    with pytest.raises(UnknownModel, match="'7' of the model 'fake'"):
        check_named(MODEL, name, number)


@dataclass
class Host:
    loaded: LoadedModel | None
    unloaded = False


def service(model: Manifest | None) -> Service:
    """A service with an engine only."""
    loaded = None
    if model is not None:
        submit = cast(Any, None)
        loaded = LoadedModel(
            model, FakeEngine.device, FakeEngine.backend, FakeEngine.precision, submit
        )
    names = "settings decoders repository uploads keys admin_keys rate_limiter metrics tracing"
    return Service(engine=cast(Any, Host(loaded)), **dict.fromkeys(names.split(), cast(Any, None)))


def test_served_returns_the_loaded_model() -> None:
    """The model must be loaded and have the requested name and version."""
    assert served(service(MODEL), "fake", "7").model is MODEL
    with pytest.raises(UnknownModel):
        served(service(MODEL), "fake", "8")
    with pytest.raises(NotReady):
        served(service(None), "fake", None)


async def test_decoded_keeps_the_order() -> None:
    """Each file becomes an image at its position. Its pieces are joined."""
    fake, one = pipeline()
    images = await decoded(one, inputs([b"\7a", b"b"], [b"\3"], iter([b"\5", b""])))
    assert reds(images) == [7, 3, 5]
    assert fake.counted == [3]


async def test_decoded_counts_pixels() -> None:
    """Images that arrive as pixels are not decoded, and count for the rate limit as well."""
    fake, one = pipeline()
    assert reds(await decoded(one, inputs(pixels=[image(1), image(2)]))) == [1, 2]
    assert fake.counted == [2]


async def test_decoded_names_the_bad_image() -> None:
    """The error of one image of several says which one it is."""
    with pytest.raises(BadImage) as caught:
        await decoded(pipeline()[1], inputs([b"\7"], [b"?"]))
    assert caught.value.__notes__ == ["This is image 1 of the request, counted from 0."]


async def test_decoded_pauses_between_pieces() -> None:
    """Other tasks run between two pieces of a file, each of which takes a while to produce."""
    turns: list[str] = []

    def pieces() -> Iterator[bytes]:
        for piece in b"\7", b"8", b"9":
            turns.append("piece")
            yield piece

    async def other() -> None:
        while True:
            turns.append("other")
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    await decoded(pipeline()[1], inputs(pieces()))
    running.cancel()
    assert turns[:5] == ["piece", "other", "piece", "other", "piece"]


async def test_decoded_raises_the_error_of_a_piece() -> None:
    """A piece that is not valid base64 ends the request, before any image is decoded."""

    def pieces() -> Iterator[bytes]:
        yield b"\7"
        raise BadInference("not base64")

    with pytest.raises(BadInference):
        await decoded(pipeline()[1], inputs([b"?"], pieces()))


async def test_by_one_version_computes_each_image_once() -> None:
    """If the version does not change, each image is classified once, and results keep the order."""
    fake, one = pipeline()
    results = await by_one_version(one, [image(red) for red in range(4)])
    assert summary(results) == [("7", 0), ("7", 1), ("7", 2), ("7", 3)]
    assert fake.inferred == [0, 1, 2, 3]
    assert await by_one_version(one, []) == []


async def test_by_one_version_computes_again_what_the_old_version_computed() -> None:
    """After a change, only the images of the old version are classified again."""
    fake, one = pipeline("7778")
    results = await by_one_version(one, [image(red) for red in range(5)])
    assert summary(results) == [("8", 0), ("8", 1), ("8", 2), ("8", 3), ("8", 4)]
    assert fake.inferred == [0, 1, 2, 3, 4, 0, 1, 2]


async def test_by_one_version_repeats_until_one_version_computed_all() -> None:
    """If the version changes again meanwhile, the images of older versions are classified again."""
    fake, one = pipeline("66778")
    results = await by_one_version(one, [image(red) for red in range(3)])
    assert summary(results) == [("8", 0), ("8", 1), ("8", 2)]
    assert fake.inferred == [0, 1, 2, 0, 1, 0, 2]


async def test_by_one_version_fails_without_a_model() -> None:
    """If the model is unloaded after the version has changed, the request gets NotReady."""
    _, one = pipeline("78-")
    with pytest.raises(NotReady):
        await by_one_version(one, [image(0), image(1)])
