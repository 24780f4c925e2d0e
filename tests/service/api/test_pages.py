"""The page at `/` as it is served: strict, small, of this service alone."""

from __future__ import annotations

import re

import httpx
import pytest

from service.api.pages import FOLDER, MEDIA_TYPES
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine

FILES = sorted(file for file in FOLDER.iterdir() if file.suffix in MEDIA_TYPES)
PATHS = ["/", *(f"/page/{file.name}" for file in FILES if file.name != "index.html")]
SCHEMES = {
    "light": r"^:root \{(.*?)\}",
    "dark": r"prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}",
}


@pytest.mark.parametrize("path", PATHS)
async def test_headers(client: httpx.AsyncClient, path: str) -> None:
    """Each file with its type, and what holds the browser to our promises."""
    response = await client.get(path)
    suffix = path[path.rfind(".") :] if "." in path else ".html"
    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] == MEDIA_TYPES[suffix]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"
    assert set(response.headers["content-security-policy"].split("; ")) == {
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    }


@pytest.mark.parametrize("path", PATHS)
async def test_sent_once(client: httpx.AsyncClient, path: str) -> None:
    """Whoever has a file is told so; whoever has another gets this one."""
    first = await client.get(path)
    etag = first.headers["etag"]
    for known in (etag, f'"other", W/{etag}'):
        again = await client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    other = await client.get(path, headers={"If-None-Match": '"0123456789abcdef"'})
    assert (other.status_code, other.content) == (200, first.content)
    assert (await client.head(path)).headers["content-length"] == str(len(first.content))


async def test_all_that_it_refers_to_is_served(client: httpx.AsyncClient) -> None:
    """By relative addresses, so that a proxy may serve it below another path."""
    page = (await client.get("/")).text
    found = {f"/{address}" for address in re.findall(r'(?:src|href)="([^"]+)"', page)}
    for file in FOLDER.glob("*.js"):
        code = file.read_text()
        found |= {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', code)}
    assert found >= {"/page/app.js", "/page/style.css", "/page/icon.svg", "/docs"}
    for address in found:
        assert (await client.get(address)).status_code == 200, address


def test_size() -> None:
    """All of it in less than 50 kB, uncompressed."""
    assert sum(file.stat().st_size for file in FILES) < 50_000


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_from_elsewhere(file: object) -> None:
    """No address of another host. The name of SVG's namespace is one that nobody fetches."""
    text = (FOLDER / str(file)).read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|url\(|[\"'(]//", text)


def test_nothing_inline() -> None:
    """What the policy forbids is not there: it would be silently without effect."""
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", page)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contrast(scheme: str) -> None:
    """Text stands out 4.5 to 1 (WCAG 2.2, AA) and bars 3 to 1, in the light and in the dark."""
    css = (FOLDER / "style.css").read_text()
    block = re.search(SCHEMES[scheme], css, re.DOTALL | re.MULTILINE)
    assert block is not None
    colour = dict(re.findall(r"--([\w-]+): (#\w{6})", block[1]))
    for ground in "ground", "raised":
        for text in "text", "quiet", "accent", "error":
            assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
        assert contrast(colour["bar"], colour[ground]) >= 3, ground
    assert contrast(colour["on-accent"], colour["accent"]) >= 4.5


def contrast(one: str, other: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    samples = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in samples]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


async def test_not_described(client: httpx.AsyncClient) -> None:
    """It is for people; the description is for programs."""
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/page")]


async def test_without_docs(engine: FakeEngine) -> None:
    """Where they are switched off, nothing of them is served, and the page links to none."""
    transport = httpx.ASGITransport(create_app(Settings(docs=False), engine.load))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for path in "/docs", "/openapi.json", "/redoc", "/static-offline-docs/swagger-ui.css":
            assert (await client.get(path)).status_code == 404
        page = (await client.get("/")).text
    assert 'href="docs"' not in page and "What is in the picture?" in page


async def test_switched_off(engine: FakeEngine) -> None:
    transport = httpx.ASGITransport(create_app(Settings(page=False), engine.load))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for path in PATHS:
            response = await client.get(path)
            assert response.status_code == 404
            assert response.json()["code"] == "not_found"
