"""The description of the interface: true, complete, and served without the internet."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.chromium import Chromium
from tests.e2e.process import SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*SCRIPTED) as server:
        server.wait_until_ready()
        yield server


@pytest.fixture(scope="module")
def predict(server: Server) -> Any:
    return httpx.get(f"{server.url}/openapi.json").json()["paths"]["/predict"]["post"]


def test_docs_need_no_internet(server: Server) -> None:
    """Everything that /docs loads comes from this server."""
    page = httpx.get(f"{server.url}/docs").text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any(asset.endswith(".js") for asset in assets) and "://" not in "".join(assets)
    for asset in assets:
        assert httpx.get(f"{server.url}{asset}").status_code == 200, asset


def test_the_upload_is_described(predict: Any) -> None:
    """A form with one binary field `img`, or the image itself."""
    content = predict["requestBody"]["content"]
    assert set(content) >= {"multipart/form-data", "image/jpeg", "image/png"}
    form = content["multipart/form-data"]["schema"]
    assert form["required"] == ["img"] and form["properties"]["img"]["format"] == "binary"


def test_every_error_is_described(predict: Any) -> None:
    """Each status with an example for each code."""
    described = {
        (int(status), code)
        for status, response in predict["responses"].items()
        for code in response["content"].get("application/problem+json", {}).get("examples", {})
    }
    assert described == {
        (401, "unauthorized"),
        (429, "rate_limited"),
        (429, "decoders_killed"),
        (413, "image_too_expensive"),
        (422, "missing_image"),
        (400, "bad_image"),
        (400, "bad_timeout"),
        (415, "unsupported_image_type"),
        (413, "body_too_large"),
        (413, "image_too_large"),
        (413, "image_too_expensive"),
        (429, "decoders_killed"),
        (408, "upload_timeout"),
        (503, "not_ready"),
        (503, "queue_full"),
        (503, "decode_queue_full"),
        (503, "decoder_lost"),
        (503, "decoders_down"),
        (503, "deadline_unreachable"),
        (503, "draining"),
        (503, "engine_dead"),
        (504, "deadline_exceeded"),
        (421, "unknown_host"),
        (403, "cross_site"),
        (500, "engine_failed"),
        (500, "internal_error"),
    }


def test_headers_are_described(server: Server, predict: Any) -> None:
    """Those that a real answer and a real refusal carry, beside what HTTP needs."""
    for response in (
        httpx.post(f"{server.url}/predict", files={"img": png(7)}),
        httpx.post(f"{server.url}/predict"),
    ):
        described = predict["responses"][str(response.status_code)]["headers"]
        ours = set(response.headers) - {"content-length", "content-type", "date"}
        ours.remove("x-content-type-options")
        assert ours <= {name.lower() for name in described}


def test_references_lead_somewhere(server: Server) -> None:
    description = httpx.get(f"{server.url}/openapi.json").text
    shapes = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    assert set(re.findall(r'#/components/schemas/(\w+)"', description)) == set(shapes)


def test_answers_are_as_described(server: Server, predict: Any) -> None:
    """The fields of a real answer are the fields of its schema."""
    answer = httpx.post(f"{server.url}/predict", files={"img": png(7)}).json()
    shapes = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    assert set(answer) == set(shapes["Prediction"]["required"])
    problem = httpx.post(f"{server.url}/predict").json()
    assert set(problem) == set(shapes["ProblemDetails"]["required"])


def test_try_it_out(chromium: Chromium, server: Server, tmp_path: pathlib.Path) -> None:
    """In the browser, a file is chosen, sent and answered."""
    horse = tmp_path / "horse.png"
    horse.write_bytes(png(7))
    with chromium.page() as page:
        page.open(f"{server.url}/docs")
        page.click(".opblock-post .opblock-summary-control")
        page.click(".opblock-post .try-out__btn")
        page.wait_for("!!document.querySelector('.opblock-post input[type=file]')")
        page.choose(".opblock-post input[type=file]", horse)
        page.click(".opblock-post .execute")
        page.wait_for("!!document.querySelector('.live-responses-table .response')")
        answer = page.texts(".live-responses-table .response")[0]
        assert answer.startswith("200") and '"class": "horse"' in answer
        assert {url.split("/")[2] for url in page.requests} == {server.url.split("/")[2]}
