"""POST /predict: what goes in, what comes out, and how errors look."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

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
    """A request whose answer is predicted to come too late is rejected and not computed."""
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
    assert (body["device"], body["device_reason"]) == ("cpu", "as asked")
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
