"""What browsers are told: headers of every answer, and who may ask from a page elsewhere."""

from __future__ import annotations

import httpx
import pytest

from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.conftest import connected, png

FORM = {"files": {"img": png(7)}}
HERE = "https://gallery.example"


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/v2", "/nowhere"],
)
async def test_every_answer(client: httpx.AsyncClient, path: str) -> None:
    """Of its own type, framed by nobody, without a word to others of where one was."""
    headers = (await client.get(path)).headers
    assert headers.get_list("x-content-type-options") == ["nosniff"]
    assert headers.get_list("referrer-policy") == ["no-referrer"]
    [policy] = headers.get_list("content-security-policy")
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    ("path", "cached"),
    [
        ("/readyz", "no-store"),
        ("/metrics", "no-store"),
        ("/nowhere", "no-store"),
        ("/docs", "no-store"),
        ("/static-offline-docs/swagger-ui.css", "no-cache"),
        ("/page/app.js", "no-cache"),
    ],
)
async def test_what_is_kept(client: httpx.AsyncClient, path: str, cached: str) -> None:
    """Nothing that tells of a moment; files only to ask whether they have changed."""
    assert (await client.get(path)).headers.get_list("cache-control") == [cached]


@pytest.mark.parametrize("path", ["/predict", "/nowhere"])
async def test_answers_to_a_post(client: httpx.AsyncClient, path: str) -> None:
    """Nobody stores or frames them; they are not taken for another type."""
    headers = (await client.post(path, **FORM)).headers  # type: ignore[arg-type]
    assert headers["x-content-type-options"] == "nosniff"


async def test_pages_elsewhere_may_not_ask(client: httpx.AsyncClient) -> None:
    """Unless the settings say so, a browser gets no leave for them."""
    answer = await client.post("/predict", **FORM, headers={"origin": HERE})  # type: ignore[arg-type]
    asked = await client.options(
        "/predict", headers={"origin": HERE, "access-control-request-method": "POST"}
    )
    for response in answer, asked:
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("allowed", "origin", "told"),
    [
        (HERE, HERE, HERE),
        (f"https://a.example, {HERE}", HERE, HERE),
        (HERE, "https://evil.example", None),
        (HERE, "https://gallery.example.evil.example", None),
        (HERE, "http://gallery.example", None),
        ("*", "https://anybody.example", "*"),
    ],
)
async def test_origins(allowed: str, origin: str, told: str | None) -> None:
    """Those that are listed may ask, send keys and read what an answer tells; no others, and never
    with a browser's own credentials."""
    async with connected(Settings(cors_origins=allowed), FakeEngine()) as client:
        asked = await client.options(
            "/predict",
            headers={
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,x-request-timeout",
            },
        )
        answer = await client.post("/predict", **FORM, headers={"origin": origin})  # type: ignore[arg-type]
        broken = await client.post("/predict", headers={"origin": origin})
    assert asked.status_code == (200 if told else 400)
    if told:
        assert asked.headers["access-control-allow-headers"] == "authorization,x-request-timeout"
        assert "Server-Timing" in answer.headers["access-control-expose-headers"]
    for response in answer, broken:
        assert response.headers.get("access-control-allow-origin") == told
        assert "access-control-allow-credentials" not in response.headers
        assert response.headers["x-request-id"]
    assert (answer.status_code, broken.status_code) == ((200, 422) if told else (403, 403))
