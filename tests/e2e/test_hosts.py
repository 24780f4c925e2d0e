"""DNS rebinding and pages elsewhere, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from service.origins import ANY_HOST
from tests.e2e.process import PATIENCE, SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow
EVIL = "attacker.example"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    keys = {"SHOAL_ADMIN_KEYS": "an-admin-key-of-many-letters"}
    with Server(*SCRIPTED, **keys) as server:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0


def test_a_rebound_name_is_refused_on_every_path(server: Server) -> None:
    """A page whose name points to this server reads nothing but probes and metrics."""
    rebound = {"host": f"{EVIL}:8000"}
    with httpx.Client(base_url=server.url) as client:
        description = client.get("/openapi.json").json()
        operations = [(m, p) for p, methods in description["paths"].items() for m in methods]
        pages = [("get", path) for path in ("/", "/docs", "/openapi.json", "/page/app.js")]
        assert len(operations) > 15
        for method, path in operations + pages:
            path = path.format(model="fake", version="7")
            answer = client.request(method, path, headers=rebound)
            assert answer.status_code == (200 if path in ANY_HOST else 421), (method, path)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"POST /predict HTTP/1.1\r\nHost: {EVIL}\r\n", "421"),
        ("POST /predict HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n", "403"),
        (f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://{EVIL}\r\n", "403"),
        ("POST /predict HTTP/1.1\r\nHost:\r\n", "421"),
        ("POST /predict HTTP/1.0\r\n", "421"),
        ("GET /healthz HTTP/1.0\r\n", "200"),
        (f"POST /predict HTTP/1.1\r\nHost: {EVIL}\r\nX-Forwarded-Host: localhost\r\n", "421"),
        (f"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Host: {EVIL}\r\n", "421"),
    ],
)
async def test_answered_before_the_upload(server: Server, head: str, status: str) -> None:
    """The answer is there while not one byte of the body has been sent, and the client was not
    told to go on."""
    url = httpx.URL(server.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    length = "" if head.startswith("GET") else "Expect: 100-continue\r\nContent-Length: 9000000\r\n"
    try:
        writer.write(f"{head}{length}\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            answer = await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()
    assert answer.split()[1].decode() == status


def test_own_pages_and_programs_are_served(server: Server) -> None:
    """By address and as localhost, with and without what browsers send."""
    port = httpx.URL(server.url).port
    for host in "127.0.0.1", "localhost":
        own = {"host": f"{host}:{port}", "origin": f"http://{host}:{port}"}
        for more in {}, own, own | {"sec-fetch-site": "same-origin"}:
            answer = httpx.post(f"{server.url}/predict", files={"img": png(7)}, headers=more)
            assert answer.status_code == 200, more


@pytest.mark.parametrize(("trusted", "status"), [("127.0.0.1", 200), ("", 403)])
def test_a_page_behind_a_proxy(trusted: str, status: int) -> None:
    """The host that a trusted proxy forwards is the page's own; what others say is ignored."""
    names = {"SHOAL_TRUSTED_PROXIES": trusted, "SHOAL_ALLOWED_HOSTS": "photos.example"}
    page = {
        "origin": "http://photos.example",
        "x-forwarded-host": "photos.example",
        "x-forwarded-for": "203.0.113.1",
    }
    with Server(*SCRIPTED, **names) as server:
        server.wait_until_ready()
        answer = httpx.post(f"{server.url}/predict", files={"img": png(7)}, headers=page)
    assert answer.status_code == status


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_log_names_the_hosts(workers: str) -> None:
    """Once, and only where the server can be reached from elsewhere."""
    for host, count in ("0.0.0.0", 1), ("127.0.0.1", 0):
        with Server(*SCRIPTED, SHOAL_HOST=host, SHOAL_WORKERS=workers) as server:
            server.wait_until_ready()
            lines = [record["message"] for record in server.log()]
        told = [line for line in lines if line.startswith("requests are accepted")]
        assert len(told) == count
        assert all("any IP address, localhost, shoal (SHOAL_ALLOWED_HOSTS" in line for line in told)
