"""DNS rebinding and pages elsewhere, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from service.http.origins import PROBE_PATHS
from tests.e2e.chromium import REBOUND, Chromium, Page
from tests.e2e.process import PATIENCE, SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow
EVIL = REBOUND


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    keys = {"SHOAL_ADMIN_KEYS": "an-admin-key-of-many-letters"}
    with Server(*SCRIPTED, **keys) as server:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0


def test_unknown_host_is_rejected_on_every_path(server: Server) -> None:
    """A page whose name resolves to this server reads nothing but probes and metrics."""
    rebound = {"host": f"{EVIL}:8000"}
    with httpx.Client(base_url=server.url) as client:
        description = client.get("/openapi.json").json()
        operations = [(m, p) for p, methods in description["paths"].items() for m in methods]
        pages = [("get", path) for path in ("/", "/docs", "/openapi.json", "/page/app.js")]
        assert len(operations) > 15
        for method, path in operations + pages:
            path = path.format(model="fake", version="7")
            answer = client.request(method, path, headers=rebound)
            assert answer.status_code == (200 if path in PROBE_PATHS else 421), (method, path)


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
async def test_unknown_host_is_rejected_before_the_upload(
    server: Server, head: str, status: str
) -> None:
    """The answer comes before a byte of the body is sent, and without 100 Continue."""
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
    """Requests by address and as localhost are served, with and without headers of browsers."""
    port = httpx.URL(server.url).port
    for host in "127.0.0.1", "localhost":
        own = {"host": f"{host}:{port}", "origin": f"http://{host}:{port}"}
        for more in {}, own, own | {"sec-fetch-site": "same-origin"}:
            answer = httpx.post(f"{server.url}/predict", files={"img": png(7)}, headers=more)
            assert answer.status_code == 200, more


@pytest.mark.parametrize(("trusted", "status"), [("127.0.0.1", 200), ("", 403)])
def test_forwarded_host_counts_from_trusted_proxies_only(trusted: str, status: int) -> None:
    """The host that a trusted proxy forwards is that of the page; from others it is ignored."""
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
def test_log_names_the_allowed_hosts_once(workers: str) -> None:
    """The log has one line about allowed hosts if the server is reachable from other machines."""
    for host, count in ("0.0.0.0", 1), ("127.0.0.1", 0):
        with Server(*SCRIPTED, SHOAL_HOST=host, SHOAL_WORKERS=workers) as server:
            server.wait_until_ready()
            lines = [record["message"] for record in server.log()]
        told = [line for line in lines if line.startswith("requests are accepted")]
        assert len(told) == count
        assert all(
            "any IP address, localhost, shoal; to add names, set SHOAL" in line for line in told
        )


def refusal(server: Server) -> tuple[int, str]:
    """Status and code of the next request that is refused, as the log tells them."""
    while "code" not in (record := server.wait_for_log("request")):
        pass
    return record["status"], record["code"]


@pytest.fixture
def page(chromium: Chromium) -> Iterator[Page]:
    """A tab in which an attacker's scripts run, also on pages of ours."""
    with chromium.page() as page:
        page.send("Page.setBypassCSP", enabled=True)
        yield page


def test_browser_after_dns_rebinding_gets_421(page: Page) -> None:
    """A page of the attacker's name gets 421 for everything it requests as its own origin."""
    with Server(*SCRIPTED) as server:
        server.wait_until_ready()
        page.open(f"http://{REBOUND}:{httpx.URL(server.url).port}/")
        asks = "fetch(%r, {method: %r, headers: {'X-Forwarded-Host': 'localhost'}})"
        for path, method in ("/v2", "GET"), ("/openapi.json", "GET"), ("/predict", "POST"):
            assert page.evaluate(f"{asks % (path, method)}.then(answer => answer.status)") == 421


@pytest.mark.parametrize("where", ["another port", "another site"])
def test_browser_on_another_page_is_rejected(page: Page, where: str) -> None:
    """A POST from another page is rejected; one from an allowed origin gets its prediction."""
    picture = f"new Blob([Uint8Array.from({[*png(7)]})])"
    form = f"(form => (form.append('img', {picture}), form))(new FormData())"
    post = f"fetch(%r, {{method: 'POST', mode: %r, body: {form}}})"
    with Server(*SCRIPTED) as other:
        if where == "another port":
            page.open(other.url)
        with Server(*SCRIPTED) as server:
            server.wait_until_ready()
            page.evaluate(f"{post % (f'{server.url}/predict', 'no-cors')}.then(_ => null)")
            assert refusal(server) == (403, "cross_site")
        if where == "another port":
            with Server(*SCRIPTED, SHOAL_CORS_ORIGINS=other.url) as server:
                server.wait_until_ready()
                answer = page.evaluate(
                    f"{post % (f'{server.url}/predict', 'cors')}.then(answer => answer.json())"
                )
                assert answer["class"] == "horse"
