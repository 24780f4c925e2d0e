"""POST /predict/batch: many images in one form, each answered or refused in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.decoding.image import EncodedImage, Pixels
from service.decoding.pool import Decoders
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.conftest import connected, png

HORSE = png(7)


async def post(client: httpx.AsyncClient, *images: bytes, **headers: str) -> httpx.Response:
    files = [("img", image) for image in images]
    return await client.post("/predict/batch", files=files, headers=headers)


async def test_in_order(client: httpx.AsyncClient) -> None:
    """Each element is what /predict answers for that image alone, large ones included."""
    images = [png(red, side=200 if red % 3 else 32) for red in range(20)]
    response = await post(client, *images)
    assert response.status_code == 200
    alone = [(await client.post("/predict", files={"img": image})).json() for image in images]
    assert response.json() == {"predictions": alone}


async def test_each_is_an_item_of_its_own(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """They are batched like those of many requests, and submitted together."""
    await post(client, *[HORSE] * 12)
    assert engine.batches == [8, 4]


async def test_one_bad_image_fails_alone(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """In its place is the problem that /predict would have told."""
    bad = {
        "bad_image": b"hello",
        "unsupported_image_type": b"II*\0" + bytes(100),
        "image_too_large": png(7, side=1001),
        "missing_image": b"",
    }
    response = await post(client, HORSE, *bad.values(), HORSE)
    first, *between, last = response.json()["predictions"]
    assert response.status_code == 200
    assert first["class"] == last["class"] == "horse"
    assert [problem["code"] for problem in between] == list(bad)
    for problem, upload in zip(between, bad.values(), strict=True):
        alone = (await client.post("/predict", files={"img": upload})).json()
        assert problem | {"request_id": ""} == alone | {"request_id": ""}
        assert problem["request_id"] == response.headers["x-request-id"]
    assert sum(engine.batches) == 2


async def test_refusals_are_told_in_place(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """With the seconds to wait, since a header could not tell them for each."""
    engine.seconds = 0.2
    response = await post(client, *[HORSE] * 40, **{"x-request-timeout": "0.35"})
    answered = [p for p in response.json()["predictions"] if "class" in p]
    refused = [p for p in response.json()["predictions"] if "class" not in p]
    assert answered and refused and len(answered) + len(refused) == 40
    assert {p["code"] for p in refused} <= {"deadline_unreachable", "deadline_exceeded"}
    assert all(p["retry_after"] >= 1 for p in refused if p["status"] == 503)


async def test_the_queue_is_full(engine: FakeEngine) -> None:
    """Whoever does not fit into the queue is refused, and only they."""
    async with connected(Settings(max_queue_size=2), engine) as client:
        predictions = (await post(client, *[HORSE] * 4)).json()["predictions"]
    outcomes = [p.get("code", "answered") for p in predictions]
    assert outcomes == ["answered", "answered", "queue_full", "queue_full"]


async def test_large_images_are_decoded_elsewhere(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By decoder processes, however many come in one form; small plain ones are not."""
    decoded = []

    async def run(_: Decoders, image: EncodedImage, *__: object) -> Pixels:
        decoded.append(image.pixels)
        return image.decode()

    monkeypatch.setattr(Decoders, "run", run)
    await post(client, HORSE, png(7, side=300), HORSE, png(7, side=400))
    assert decoded == [90_000, 160_000]


async def test_timing(client: httpx.AsyncClient) -> None:
    """Each stage has the time of the image it took longest with."""
    response = await post(client, HORSE, HORSE)
    stages = [stage.split(";")[0] for stage in response.headers["server-timing"].split(", ")]
    assert stages == ["read", "decode", "queue", "infer"]


async def test_a_failing_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.error = RuntimeError("secret innards")
    response = await post(client, HORSE, HORSE)
    assert [p["code"] for p in response.json()["predictions"]] == ["engine_failed"] * 2
    assert "innards" not in response.text


async def test_the_unexpected_ends_the_whole(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody foresaw is no problem of an image."""

    def fail(*_: object) -> None:
        raise RuntimeError("secret innards")

    monkeypatch.setattr("service.inference.pipeline.identify", fail)
    response = await post(client, HORSE, HORSE)
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")


CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "nothing": (422, "missing_image", {}),
    "the image itself": (422, "missing_image", {"content": HORSE}),
    "an image by type": (
        422,
        "missing_image",
        {"content": HORSE, "headers": {"content-type": "image/png"}},
    ),
    "no field img": (422, "missing_image", {"files": {"image": HORSE}}),
    "too many parts": (422, "missing_image", {"files": [("other", b"x")] * 200}),
    "not a form": (
        422,
        "missing_image",
        {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=x"}},
    ),
    "one too many": (413, "too_many_images", {"files": [("img", HORSE)] * 65}),
    "many too many": (413, "too_many_images", {"files": [("img", HORSE)] * 200}),
    "too many bytes": (413, "body_too_large", {"files": [("img", bytes(30_000))] * 4}),
    "bad timeout": (
        400,
        "bad_timeout",
        {"files": {"img": HORSE}, "headers": {"x-request-timeout": "soon"}},
    ),
}


@pytest.mark.parametrize(("status", "code", "request_"), CASES.values(), ids=CASES)
async def test_the_form_itself(
    client: httpx.AsyncClient, status: int, code: str, request_: dict[str, Any]
) -> None:
    """What is wrong with the whole request is told as everywhere else."""
    response = await client.post("/predict/batch", **request_)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert len(response.json()["detail"]) > 40


async def test_as_many_as_allowed(client: httpx.AsyncClient, settings: Settings) -> None:
    images = [HORSE] * settings.max_images_per_request
    response = await client.post(
        "/predict/batch", files=[("other", b"x"), *[("img", image) for image in images]]
    )
    assert [p["class"] for p in response.json()["predictions"]] == ["horse"] * len(images)


async def test_forms_count_toward_the_upload_memory(client: httpx.AsyncClient) -> None:
    """All bytes of a form count until its images are decoded, and none afterwards."""
    begun, more = asyncio.Semaphore(0), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(90_000)
        begun.release()  # the service asks for more: it has read the first part
        await more.wait()

    def raw(content: Any) -> asyncio.Task[httpx.Response]:
        headers = {"content-type": "image/png"}
        return asyncio.create_task(client.post("/predict", content=content, headers=headers))

    waiting = [raw(slow()), raw(slow())]
    for _ in waiting:
        await begun.acquire()
    refused = await post(client, *[HORSE + bytes(15_000)] * 3)
    assert (refused.status_code, refused.json()["code"]) == (503, "upload_memory_full")
    more.set()
    await asyncio.gather(*waiting)
    for _ in range(5):
        assert (await post(client, *[HORSE + bytes(30_000)] * 3)).status_code == 200
