"""Tests that the OpenAPI description is complete and correct, and that /docs works offline."""

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
    """Everything that /docs loads comes from the server."""
    page = httpx.get(f"{server.url}/docs").text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any(asset.endswith(".js") for asset in assets) and "://" not in "".join(assets)
    for asset in assets:
        assert httpx.get(f"{server.url}{asset}").status_code == 200, asset


def test_description_has_the_upload(predict: Any) -> None:
    """An upload is a form with the binary field `img`, or the image itself."""
    content = predict["requestBody"]["content"]
    assert set(content) >= {"multipart/form-data", "image/jpeg", "image/png"}
    form = content["multipart/form-data"]["schema"]
    assert form["required"] == ["img"] and form["properties"]["img"]["format"] == "binary"


def test_description_has_every_error(predict: Any) -> None:
    """Each status has an example for each of its codes."""
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
        (503, "upload_memory_full"),
        (503, "engine_busy"),
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


def test_description_has_the_headers(server: Server, predict: Any) -> None:
    """All headers of an answer and of an error are described, except those of HTTP itself."""
    for response in (
        httpx.post(f"{server.url}/predict", files={"img": png(7)}),
        httpx.post(f"{server.url}/predict"),
    ):
        described = predict["responses"][str(response.status_code)]["headers"]
        headers = set(response.headers) - {"content-length", "content-type", "date"}
        headers.remove("x-content-type-options")
        assert headers <= {name.lower() for name in described}


def test_description_has_every_schema(server: Server) -> None:
    """Every reference leads to a schema, and every schema is referenced."""
    description = httpx.get(f"{server.url}/openapi.json").text
    shapes = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    assert set(re.findall(r'#/components/schemas/(\w+)"', description)) == set(shapes)


def test_description_has_the_fields_of_answers(server: Server, predict: Any) -> None:
    """An answer and an error have the fields of their schemas."""
    answer = httpx.post(f"{server.url}/predict", files={"img": png(7)}).json()
    shapes = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    assert set(answer) == set(shapes["Prediction"]["required"])
    problem = httpx.post(f"{server.url}/predict").json()
    assert set(problem) == set(shapes["ProblemDetails"]["required"])


def test_docs_can_send_a_request(
    chromium: Chromium, server: Server, tmp_path: pathlib.Path
) -> None:
    """In the browser, /docs sends a chosen file and shows the answer."""
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
