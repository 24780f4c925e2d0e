"""Tests /predict and /predict/batch: accepted requests, answers and errors."""

from __future__ import annotations

import asyncio
import json
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
SENTENCE = "The input picture is classified as [horse], with probability 0.910."


def raw(kind: str = "image/png", **headers: str) -> dict[str, Any]:
    return {"content": HORSE, "headers": {"content-type": kind, **headers}}


async def test_a_form(client: httpx.AsyncClient) -> None:
    """The field `img` of a form, as in the tutorial, gets class, probability and sentence."""
    response = await client.post("/predict", files={"img": ("horse.png", HORSE, "image/png")})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["class", "probability", "message", "probabilities", "model"]
    assert (body["class"], body["probability"], body["message"]) == ("horse", 0.91, SENTENCE)
    assert list(body["probabilities"])[:3] == ["airplane", "automobile", "bird"]
    assert len(body["probabilities"]) == 10 and body["probabilities"]["cat"] == 0.01
    assert body["model"] == {"name": "fake", "version": "7"}


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "image/x-whatever", "IMAGE/PNG"])
async def test_the_body_itself(client: httpx.AsyncClient, kind: str) -> None:
    """A raw body of any image type is read for what it is, not for what it is called."""
    assert (await client.post("/predict", **raw(kind))).json()["class"] == "horse"


@pytest.mark.parametrize(
    ("accept", "is_text"),
    [
        ("text/plain", True),
        ("text/plain, */*;q=0.1", True),
        ("TEXT/PLAIN", True),
        ("application/json;q=0.5, text/plain", True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("application/json, text/plain, */*", False),  # what axios sends
        ("text/plain;q=0.5, application/json", False),
        ("text/plain;q=0", False),
        ("text/plain;q=x", False),
        ("application/*, text/plain", False),
        ("text/plain".ljust(1024), True),
        ("text/plain" + "," * 1015, False),  # 1,025 characters
    ],
)
async def test_text_for_who_prefers_it(
    client: httpx.AsyncClient, accept: str, is_text: bool
) -> None:
    """The tutorial's bare sentence goes to clients that prefer text/plain to JSON."""
    response = await client.post("/predict", **raw(accept=accept))
    assert response.status_code == 200
    assert (response.text == SENTENCE) is is_text
    assert response.headers["content-type"].startswith("text/plain") is is_text


async def test_predict_answers_with_text_by_default_where_configured(
    engine: FakeEngine, settings: Settings
) -> None:
    """With SHOAL_DEFAULT_ANSWER=text the unmodified client of the Flask tutorial gets the sentence;
    clients that ask for JSON get JSON."""
    async with connected(settings.model_copy(update={"default_answer": "text"}), engine) as client:
        response = await client.post("/predict", files={"img": HORSE})
        assert response.text == SENTENCE
        assert response.headers["content-type"].startswith("text/plain")
        json_response = await client.post("/predict", **raw(accept="application/json"))
        assert json_response.json()["message"] == SENTENCE


async def test_timing(client: httpx.AsyncClient) -> None:
    """`Server-Timing` names the stages, in milliseconds."""
    response = await client.post("/predict", **raw())
    stages = dict(stage.split(";dur=") for stage in response.headers["server-timing"].split(", "))
    assert list(stages) == ["read", "decode", "queue", "infer"]
    assert all(0 <= float(duration) < 1000 for duration in stages.values())


@pytest.mark.parametrize("given", ["abc-123", "01:02/x=+_."])
async def test_a_sane_request_id_is_kept(client: httpx.AsyncClient, given: str) -> None:
    response = await client.post("/predict", **raw(**{"x-request-id": given}))
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, "<script>", "a\tb", 'a"b'])
async def test_another_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    """Nothing that could break a log or a page comes back."""
    response = await client.post("/predict", **raw(**{"x-request-id": given}))
    assert response.headers["x-request-id"] != given
    assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize("wish", ["9.5", "1e1", " 12 ", "3600"])
async def test_a_deadline_of_its_own(client: httpx.AsyncClient, wish: str) -> None:
    """A request may be in more of a hurry than the server; never in less."""
    assert (await client.post("/predict", **raw(**{"x-request-timeout": wish}))).status_code == 200


async def test_predict_rejects_an_unreachable_deadline(settings: Settings) -> None:
    """A request whose answer is predicted to come too late is rejected and not classified."""
    slow = FakeEngine(warm_up_seconds=1000.0)
    async with connected(settings, slow) as client:
        response = await client.post("/predict", **raw(**{"x-request-timeout": "5"}))
    assert (response.status_code, response.json()["code"]) == (503, "deadline_unreachable")
    assert slow.batches == []


CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "nothing": (422, "missing_image", {}),
    "no content type": (422, "missing_image", {"content": HORSE}),
    "JSON": (422, "missing_image", {"json": {"img": "..."}}),
    "URL-encoded": (422, "missing_image", {"data": {"img": "horse"}}),
    "another field": (422, "missing_image", {"files": {"image": HORSE}}),
    "empty file": (422, "missing_image", {"files": {"img": b""}}),
    "empty body": (422, "missing_image", raw() | {"content": b""}),
    "no boundary": (422, "missing_image", raw("multipart/form-data")),
    "long boundary": (422, "missing_image", raw(f"multipart/form-data; boundary={'x' * 300}")),
    "not a form": (422, "missing_image", raw("multipart/form-data; boundary=x")),
    "65 parts": (422, "missing_image", {"files": [("other", b"x")] * 65 + [("img", HORSE)]}),
    "no timeout": (400, "bad_timeout", raw(**{"x-request-timeout": "soon"})),
    "negative timeout": (400, "bad_timeout", raw(**{"x-request-timeout": "-1"})),
    "endless timeout": (400, "bad_timeout", raw(**{"x-request-timeout": "inf"})),
    "NaN timeout": (400, "bad_timeout", raw(**{"x-request-timeout": "nan"})),
    "text": (400, "bad_image", {"files": {"img": b"hello"}}),
    "cut short": (400, "bad_image", {"files": {"img": HORSE[: len(HORSE) // 2]}}),
    "TIFF": (415, "unsupported_image_type", {"files": {"img": b"II*\0" + bytes(100)}}),
    "too many bytes": (413, "body_too_large", raw() | {"content": bytes(100_001)}),
    "too many bytes in a form": (413, "body_too_large", {"files": {"img": bytes(100_001)}}),
    "too many pixels": (413, "image_too_large", {"files": {"img": png(7, side=1001)}}),
}


@pytest.mark.parametrize(("status", "code", "request_"), CASES.values(), ids=CASES)
async def test_problems(
    client: httpx.AsyncClient, status: int, code: str, request_: dict[str, Any]
) -> None:
    """Bad input is told what happened and what to do, as RFC 9457 problem details."""
    response = await client.post("/predict", **request_)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert list(body) == ["type", "title", "status", "detail", "code", "request_id"]
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == response.headers["x-request-id"]
    assert len(body["detail"]) > 40, "a detail says what to do"
    assert body["type"] == f"urn:shoal:problem:{code}"


async def test_an_unknown_length_is_counted(client: httpx.AsyncClient) -> None:
    """A chunked body says no length; the limit is kept while it is read."""

    async def endless() -> Any:
        while True:
            yield bytes(10_000)

    response = await client.post(
        "/predict", content=endless(), headers={"content-type": "image/png"}
    )
    assert response.json()["code"] == "body_too_large"


async def test_uploads_share_the_upload_memory(client: httpx.AsyncClient) -> None:
    """An upload that would exceed the memory of all uploads is rejected with Retry-After. An upload
    that has ended takes no memory."""
    begun, more = asyncio.Semaphore(0), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield HORSE + bytes(60_000)
        begun.release()  # the service asks for more: it has read the first part
        await more.wait()

    def post(content: Any) -> asyncio.Task[httpx.Response]:
        headers = {"content-type": "image/png"}
        return asyncio.create_task(client.post("/predict", content=content, headers=headers))

    first, second = post(slow()), post(slow())
    for _ in range(2):
        await begun.acquire()
    refused = await post(HORSE + bytes(90_000))
    assert (refused.status_code, refused.json()["code"]) == (503, "upload_memory_full")
    assert refused.headers["retry-after"] == "1"
    more.set()
    assert [(await task).status_code for task in (first, second)] == [200, 200]
    for _ in range(5):
        assert (await post(HORSE + bytes(90_000))).status_code == 200


async def test_a_stop_that_takes_too_long_is_told(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that the server gives up on ends as a problem, not as half an answer."""

    async def give_up(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr("service.api.predict.read_image", give_up)
    response = await client.post("/predict", **raw())
    assert (response.status_code, response.json()["code"]) == (503, "cut_off")
    assert response.headers["connection"] == "close"
    assert not [record for record in caplog.records if record.exc_info]


async def test_other_fields_are_passed_over(client: httpx.AsyncClient) -> None:
    """Fields beside `img` do no harm, and of two images the first one counts."""
    files = [("note", b"hi"), ("img", HORSE), ("img", png(3))]
    response = await client.post("/predict", files=files)
    assert response.json()["class"] == "horse"


async def test_large_images_go_the_other_way(client: httpx.AsyncClient) -> None:
    """An image that is decoded on a thread is answered like any other."""
    response = await client.post("/predict", files={"img": png(7, side=900)})
    assert response.json()["class"] == "horse"


async def test_the_engine_fails(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """A failure inside is 500 without its innards; the next request is served."""
    engine.error = RuntimeError("secret innards")
    response = await client.post("/predict", **raw())
    assert (response.status_code, response.json()["code"]) == (500, "engine_failed")
    assert "innards" not in response.text
    engine.error = None
    assert (await client.post("/predict", **raw())).status_code == 200


async def test_healthz_turns_red(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """An engine that fails everything time after time asks for a restart."""
    engine.error = RuntimeError("gone")
    assert (await client.get("/healthz")).json() == {"status": "live"}
    for _ in range(10):
        await client.post("/predict", **raw())
    response = await client.get("/healthz")
    assert (response.status_code, response.json()["code"]) == (503, "not_live")


async def test_readyz(client: httpx.AsyncClient) -> None:
    """Ready says what serves, on what and why, and what a batch takes."""
    body = (await client.get("/readyz")).json()
    assert body["status"] == "ready"
    assert body["model"] == {"name": "fake", "version": "7"}
    assert (body["device"], body["device_reason"]) == ("cpu", "as requested")
    assert (body["backend"], body["backend_reason"]) == ("mxnet", "as requested")
    assert body["precision"] == "fp32" and "not calibrated" in body["precision_reason"]
    assert list(body["latency"]) == ["1", "2", "4", "8"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("POST", "/predict/", 404, "not_found"),  # no redirect to what the client calls us
        ("GET", "/predict", 405, "method_not_allowed"),
    ],
)
async def test_elsewhere(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    """Wrong paths and methods look like every other error."""
    response = await client.request(method, path)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert "/predict" in json.dumps(response.json()) or "Allow" in response.json()["detail"]


async def test_the_unexpected(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw is answered as a problem and logged once, with its traceback."""

    def fail(*_: object) -> None:
        raise RuntimeError("secret innards")

    monkeypatch.setattr("service.api.predict._respond", fail)
    response = await client.post("/predict", **raw())
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "innards" not in response.text
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_predict_releases_the_upload_before_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """While an image waits for the engine, its upload takes no memory."""
    service = client._transport.app.state.service  # type: ignore[attr-defined]
    engine.goes_on.clear()
    answer = asyncio.create_task(client.post("/predict", files={"img": HORSE}))
    await engine.called.wait()
    held = service.uploads.held
    engine.goes_on.set()
    assert (await answer).status_code == 200
    assert held == 0


async def test_predict_ignores_what_follows_the_image(client: httpx.AsyncClient) -> None:
    """Bytes after the first image are not parsed, so they cannot be malformed."""
    part = b'--x\r\nContent-Disposition: form-data; name="img"\r\n\r\n' + HORSE
    response = await client.post(
        "/predict",
        content=part + b"\r\n--x\r\nthis is not a header",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert response.status_code == 200


# --- POST /predict/batch. ------------------------------------------------------------------------


async def post_batch(client: httpx.AsyncClient, *images: bytes, **headers: str) -> httpx.Response:
    files = [("img", image) for image in images]
    return await client.post("/predict/batch", files=files, headers=headers)


async def test_predict_batch_keeps_the_order(client: httpx.AsyncClient) -> None:
    """Each element is what /predict answers for that image alone, also for large images."""
    images = [png(red, side=200 if red % 3 else 32) for red in range(20)]
    response = await post_batch(client, *images)
    assert response.status_code == 200
    alone = [(await client.post("/predict", files={"img": image})).json() for image in images]
    assert response.json() == {"predictions": alone}


async def test_predict_batch_submits_each_image_as_an_item(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """The images are batched like those of many requests, and submitted together."""
    await post_batch(client, *[HORSE] * 12)
    assert engine.batches == [8, 4]


async def test_predict_batch_returns_errors_of_single_images(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """At the position of a bad image is the problem that /predict returns for it."""
    bad = {
        "bad_image": b"hello",
        "unsupported_image_type": b"II*\0" + bytes(100),
        "image_too_large": png(7, side=1001),
        "missing_image": b"",
    }
    response = await post_batch(client, HORSE, *bad.values(), HORSE)
    first, *between, last = response.json()["predictions"]
    assert response.status_code == 200
    assert first["class"] == last["class"] == "horse"
    assert [problem["code"] for problem in between] == list(bad)
    for problem, upload in zip(between, bad.values(), strict=True):
        alone = (await client.post("/predict", files={"img": upload})).json()
        assert problem | {"request_id": ""} == alone | {"request_id": ""}
        assert problem["request_id"] == response.headers["x-request-id"]
    assert sum(engine.batches) == 2


async def test_predict_batch_returns_rejections_of_single_images(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """Each rejection has its own `retry_after`, since a header has room for one."""
    engine.seconds = 0.2
    response = await post_batch(client, *[HORSE] * 40, **{"x-request-timeout": "0.35"})
    answered = [p for p in response.json()["predictions"] if "class" in p]
    refused = [p for p in response.json()["predictions"] if "class" not in p]
    assert answered and refused and len(answered) + len(refused) == 40
    assert {p["code"] for p in refused} <= {"deadline_unreachable", "deadline_exceeded"}
    assert all(p["retry_after"] >= 1 for p in refused if p["status"] == 503)


async def test_predict_batch_rejects_images_beyond_the_queue(engine: FakeEngine) -> None:
    """Images that do not fit into the queue are rejected, and the others are answered."""
    async with connected(Settings(max_queue_size=2), engine) as client:
        predictions = (await post_batch(client, *[HORSE] * 4)).json()["predictions"]
    outcomes = [p.get("code", "answered") for p in predictions]
    assert outcomes == ["answered", "answered", "queue_full", "queue_full"]


async def test_predict_batch_decodes_large_images_in_decoder_processes(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large images go to decoder processes, and small plain ones do not."""
    decoded = []

    async def run(_: Decoders, image: EncodedImage, *__: object) -> Pixels:
        decoded.append(image.pixels)
        return image.decode()

    monkeypatch.setattr(Decoders, "run", run)
    await post_batch(client, HORSE, png(7, side=300), HORSE, png(7, side=400))
    assert decoded == [90_000, 160_000]


async def test_predict_batch_reports_the_time_of_each_stage(client: httpx.AsyncClient) -> None:
    """Server-Timing has each stage once."""
    response = await post_batch(client, HORSE, HORSE)
    stages = [stage.split(";")[0] for stage in response.headers["server-timing"].split(", ")]
    assert stages == ["read", "decode", "queue", "infer"]


async def test_predict_batch_hides_details_of_an_engine_failure(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """If the engine fails, each image gets a problem without internal details."""
    engine.error = RuntimeError("secret innards")
    response = await post_batch(client, HORSE, HORSE)
    assert [p["code"] for p in response.json()["predictions"]] == ["engine_failed"] * 2
    assert "innards" not in response.text


async def test_predict_batch_fails_on_an_unexpected_exception(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is no problem of a single image: the request fails."""

    def fail(*_: object) -> None:
        raise RuntimeError("secret innards")

    monkeypatch.setattr("service.inference.pipeline.identify", fail)
    response = await post_batch(client, HORSE, HORSE)
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")


BATCH_CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
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


@pytest.mark.parametrize(("status", "code", "request_"), BATCH_CASES.values(), ids=BATCH_CASES)
async def test_predict_batch_rejects_bad_requests(
    client: httpx.AsyncClient, status: int, code: str, request_: dict[str, Any]
) -> None:
    """An error of the whole request has the same form as elsewhere."""
    response = await client.post("/predict/batch", **request_)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert len(response.json()["detail"]) > 40


async def test_predict_batch_accepts_the_maximum_number_of_images(
    client: httpx.AsyncClient, settings: Settings
) -> None:
    """A request with the maximum number of images is answered."""
    images = [HORSE] * settings.max_images_per_request
    response = await client.post(
        "/predict/batch", files=[("other", b"x"), *[("img", image) for image in images]]
    )
    assert [p["class"] for p in response.json()["predictions"]] == ["horse"] * len(images)


async def test_predict_batch_counts_toward_the_upload_memory(client: httpx.AsyncClient) -> None:
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
    refused = await post_batch(client, *[HORSE + bytes(15_000)] * 3)
    assert (refused.status_code, refused.json()["code"]) == (503, "upload_memory_full")
    more.set()
    await asyncio.gather(*waiting)
    for _ in range(5):
        assert (await post_batch(client, *[HORSE + bytes(30_000)] * 3)).status_code == 200
