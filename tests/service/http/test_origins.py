"""Allowed hosts and cross-site requests: tables of what is accepted, and that nothing gets past."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from service.app import create_app
from service.errors import CrossSite, UnknownHost
from service.http.context import context_of
from service.http.middleware import RequestMiddleware
from service.http.origins import MAX_HOST_BYTES, PROBE_PATHS, AllowedHosts, Guard, is_loopback
from service.http.problems import PROBLEMS, documented
from service.http.proxies import MAX_BYTES, MAX_NAMES, ProxyHeaders
from service.settings import Settings, host_name, split
from tests.fakes import FakeEngine
from tests.service.conftest import png

EVIL = "attacker.example"
PROXY, CLIENT = "127.0.0.1", "192.0.2.9"
KUBERNETES = "shoal,shoal.ns.svc.cluster.local"


@pytest.mark.parametrize(
    ("bound", "allowed", "host", "accepted"),
    [
        # What the server is bound to changes nothing but its own name.
        ("127.0.0.1", "", "127.0.0.1:8000", True),
        ("127.0.0.1", "", "localhost:8000", True),
        ("127.0.0.1", "", "LocalHost", True),
        ("127.0.0.1", "", "localhost.", True),
        ("127.0.0.1", "", "[::1]:8000", True),
        ("::1", "", "[::1]:8000", True),
        ("::1", "", "localhost", True),
        ("0.0.0.0", "", "localhost:8000", True),
        ("box.lan", "", "box.lan:8000", True),
        ("127.0.0.1", "", "box.lan:8000", False),
        # An address cannot be rebound: no name server is asked for it.
        ("0.0.0.0", "", "10.1.2.3:8000", True),
        ("::", "", "[2001:db8::7]", True),
        ("0.0.0.0", "", "0.0.0.0:8000", True),
        ("0.0.0.0", "", "[::ffff:10.1.2.3]", True),
        # Names must be listed, whole.
        ("127.0.0.1", "", EVIL, False),
        ("0.0.0.0", "", EVIL, False),
        ("0.0.0.0", "", "shoal", False),
        ("0.0.0.0", KUBERNETES, "shoal", True),
        ("0.0.0.0", KUBERNETES, "shoal:80", True),
        ("0.0.0.0", KUBERNETES, "shoal.ns.svc.cluster.local", True),
        ("0.0.0.0", KUBERNETES, "shoal.other.svc.cluster.local", False),
        ("0.0.0.0", KUBERNETES, f"shoal.{EVIL}", False),
        ("0.0.0.0", "photos.example:443", "photos.example", True),
        ("0.0.0.0", "photos.example", "PHOTOS.example.:8443", True),
        ("0.0.0.0", "photos.example", "www.photos.example", False),
        ("0.0.0.0", "photos.example", "localhost", True),
        ("0.0.0.0", "photos.example", "10.1.2.3", True),
        ("0.0.0.0", "*.photos.example", "a.b.photos.example", True),
        ("0.0.0.0", "*.photos.example", "photos.example", False),
        ("0.0.0.0", "*.photos.example", "evilphotos.example", False),
        ("0.0.0.0", "*.photos.example", "*.photos.example", False),
        ("0.0.0.0", "*.photos.example", ".photos.example", False),
        ("0.0.0.0", "*", EVIL, True),
        ("0.0.0.0", "shoal, *", "", True),
        # What only looks like a name that is accepted.
        ("127.0.0.1", "", f"localhost.{EVIL}", False),
        ("127.0.0.1", "", f"127.0.0.1.{EVIL}", False),
        ("127.0.0.1", "", f"127.0.0.1@{EVIL}", False),
        ("127.0.0.1", "", f"{EVIL}@127.0.0.1", False),
        ("127.0.0.1", "", f"127.0.0.1:80.{EVIL}", False),
        ("127.0.0.1", "", f"127.0.0.1, {EVIL}", False),
        ("127.0.0.1", "", f"{EVIL}#localhost", False),
        ("127.0.0.1", "", f"[{EVIL}]", False),
        ("127.0.0.1", "", f"[::1].{EVIL}", False),
        ("127.0.0.1", "", f"[::1%{EVIL}]", False),
        ("127.0.0.1", "", "localhost..", False),
        ("127.0.0.1", "", "app.localhost", False),
        ("127.0.0.1", "", "127.1", False),
        ("127.0.0.1", "", "2130706433", False),
        ("127.0.0.1", "", "localhost\n", False),
        ("127.0.0.1", "", "localhost:" + "8" * 10_000, False),
        ("127.0.0.1", "", "", False),
    ],
)
def test_allowed_hosts(bound: str, allowed: str, host: str, accepted: bool) -> None:
    """IP addresses, localhost, the bound name and the listed names are accepted, with any port."""
    settings = Settings(host=bound, allowed_hosts=allowed)
    hosts = AllowedHosts(settings.host, split(settings.allowed_hosts))
    assert hosts.accepts(host.encode()) is accepted


LABEL = st.from_regex(r"[a-z0-9_-]{1,8}", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)


@given(NAME, st.lists(NAME, max_size=3), st.sampled_from(["", ":80", ".", ".:8000"]))
def test_a_name_is_accepted_only_if_it_is_listed(name: str, listed: list[str], end: str) -> None:
    """Names are compared whole, whatever dots and ports surround them."""
    patterns = [f"*.{each}" for each in listed[1:]]
    hosts = AllowedHosts("127.0.0.1", [*listed[:1], *patterns])
    below = any(name.endswith(pattern[1:]) for pattern in patterns)
    address = re.fullmatch(r"\d+\.\d+\.\d+\.\d+", name)
    if not address:
        assert hosts.accepts((name + end).encode()) is (name in {"localhost", *listed[:1]} or below)


@given(st.binary(max_size=300))
def test_any_host_is_answered(host: bytes) -> None:
    """No bytes raise an error, and what is accepted is an address or localhost."""
    if AllowedHosts("127.0.0.1", []).accepts(host):
        name = host_name(host.decode("ascii"))
        assert name == "localhost" or re.fullmatch(r"[\d.]+|[\da-f:.]+", name or "")


def test_refused_hosts_take_no_memory() -> None:
    """Decisions are cached for short values only, and for a bounded number of them."""
    hosts = AllowedHosts("127.0.0.1", [])
    for number in range(5000):
        hosts.accepts(b"%d.attacker.example" % number)
        hosts.accepts(b"%d" % number * 1000)
    assert hosts._cached.cache_info().currsize == hosts._cached.cache_info().maxsize == 1024


@pytest.mark.parametrize("excess", [0, 1])
def test_guard_remembers_short_hosts_only(excess: int) -> None:
    """Where every host is accepted, those of more than `MAX_HOST_BYTES` are not remembered."""
    guard, host = Guard(Settings(allowed_hosts="*")), b"h" * (MAX_HOST_BYTES + excess)
    guard.check({"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host)]})
    assert guard.accepted == (set() if excess else {host})


class FakeMetrics:
    def begin_request(self) -> None:
        pass

    def end_request(self, *_: object) -> None:
        pass


class FakeState:
    draining = False


async def status(
    settings: Settings, method: str, path: str, headers: dict[str, str], peer: str = CLIENT
) -> str | None:
    """The code of the guard's refusal; None if the request reaches the application."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def untouched() -> AsyncIterator[bytes]:
        yield b""  # where httpx begins
        raise AssertionError("the body was read")

    app = RequestMiddleware(
        application, FakeMetrics(), FakeState(), Guard(settings), settings.trusted_proxies
    )
    transport = httpx.ASGITransport(app, client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.request(
            method, path, headers=headers, content=untouched() if method == "POST" else None
        )
    if response.status_code == 204:
        return None
    code: str = response.json()["code"]
    assert response.status_code == {"unknown_host": 421, "cross_site": 403}[code]
    return code


HERE = "shoal.example"
SITE, OTHER = f"http://{HERE}", "https://gallery.example"


@pytest.mark.parametrize(
    ("method", "site", "origin", "host", "forwarded", "peer", "cors", "code"),
    [
        # Browsers that send Sec-Fetch-Site.
        ("POST", "same-origin", SITE, HERE, None, CLIENT, "", None),
        ("POST", "none", None, HERE, None, CLIENT, "", None),
        ("POST", "cross-site", OTHER, HERE, None, CLIENT, "", "cross_site"),
        ("POST", "cross-site", None, HERE, None, CLIENT, "", "cross_site"),
        ("POST", "same-site", "http://a.shoal.example", HERE, None, CLIENT, "", "cross_site"),
        ("POST", "cross-site", SITE, HERE, None, CLIENT, "", "cross_site"),
        ("POST", "unheard-of", SITE, HERE, None, CLIENT, "", "cross_site"),
        ("POST", "", SITE, HERE, None, CLIENT, "", "cross_site"),
        ("POST", "cross-site", OTHER, HERE, None, CLIENT, OTHER, None),
        ("POST", "same-site", OTHER, HERE, None, CLIENT, OTHER, None),
        ("POST", "cross-site", "null", HERE, None, CLIENT, OTHER, "cross_site"),
        ("POST", "cross-site", "null", HERE, None, CLIENT, "*", None),
        # Every method that is not safe, and no other.
        ("PUT", "cross-site", OTHER, HERE, None, CLIENT, "", "cross_site"),
        ("PATCH", "cross-site", OTHER, HERE, None, CLIENT, "", "cross_site"),
        ("DELETE", "cross-site", OTHER, HERE, None, CLIENT, "", "cross_site"),
        ("GET", "cross-site", None, HERE, None, CLIENT, "", None),
        ("HEAD", "cross-site", None, HERE, None, CLIENT, "", None),
        ("OPTIONS", "cross-site", OTHER, HERE, None, CLIENT, "", None),
        # Without Sec-Fetch-Site: plain HTTP.
        ("POST", None, None, HERE, None, CLIENT, "", None),
        ("POST", None, SITE, HERE, None, CLIENT, "", None),
        ("POST", None, f"https://{HERE}", HERE, None, CLIENT, "", None),
        ("POST", None, f"https://{HERE}", f"{HERE}:443", None, CLIENT, "", None),
        ("POST", None, f"http://{HERE}:80", HERE, None, CLIENT, "", None),
        ("POST", None, f"http://{HERE}:443", HERE, None, CLIENT, "", "cross_site"),
        ("POST", None, f"http://{HERE}:8000", f"{HERE}:8000", None, CLIENT, "", None),
        ("POST", None, "http://[::1]:8000", "[::1]:8000", None, CLIENT, "", None),
        ("POST", None, "http://localhost:3000", "localhost:8000", None, CLIENT, "", "cross_site"),
        ("POST", None, "http://localhost", "localhost:8000", None, CLIENT, "", "cross_site"),
        ("POST", None, "http://127.0.0.1", "localhost", None, CLIENT, "", "cross_site"),
        ("POST", None, OTHER, HERE, None, CLIENT, "", "cross_site"),
        ("POST", None, OTHER, HERE, None, CLIENT, OTHER, None),
        ("POST", None, f"{OTHER}.{EVIL}", HERE, None, CLIENT, OTHER, "cross_site"),
        ("POST", None, f"{SITE}.{EVIL}", HERE, None, CLIENT, "", "cross_site"),
        ("POST", None, f"http://{EVIL}:80@{HERE}", HERE, None, CLIENT, "", "cross_site"),
        ("POST", None, "null", HERE, None, CLIENT, "", "cross_site"),
        ("POST", None, "", HERE, None, CLIENT, "", "cross_site"),
        ("POST", None, f"file://{HERE}", HERE, None, CLIENT, "", "cross_site"),
        ("POST", None, f"chrome-extension://{HERE}", HERE, None, CLIENT, "", "cross_site"),
        # Behind a proxy that asks by an address.
        ("POST", None, SITE, "10.0.0.1", None, PROXY, "", "cross_site"),
        ("POST", None, SITE, "10.0.0.1", HERE, PROXY, "", None),
        ("POST", None, SITE, "10.0.0.1", HERE, CLIENT, "", "cross_site"),
        ("POST", None, SITE, "10.0.0.1", f"{HERE}, 10.0.0.2", PROXY, "", None),
        ("POST", None, OTHER, "10.0.0.1", HERE, PROXY, "", "cross_site"),
        ("POST", None, None, "10.0.0.1", "", PROXY, "", None),
        # What a trusted proxy forwards must be allowed as well, and replaces no Host.
        ("GET", None, None, "10.0.0.1", HERE, PROXY, "", None),
        ("GET", None, None, "10.0.0.1", EVIL, PROXY, "", "unknown_host"),
        ("GET", None, None, "10.0.0.1", f"{HERE},{EVIL}", PROXY, "", "unknown_host"),
        ("GET", None, None, "10.0.0.1", f"{EVIL}, {HERE}", PROXY, "", "unknown_host"),
        ("GET", None, None, "10.0.0.1", EVIL, CLIENT, "", None),
        ("GET", None, None, EVIL, HERE, PROXY, "", "unknown_host"),
        ("POST", "same-origin", f"http://{EVIL}", EVIL, HERE, PROXY, "*", "unknown_host"),
        ("OPTIONS", None, OTHER, EVIL, None, CLIENT, OTHER, "unknown_host"),
    ],
)
async def test_what_browsers_may_send(
    method: str,
    site: str | None,
    origin: str | None,
    host: str,
    forwarded: str | None,
    peer: str,
    cors: str,
    code: str | None,
) -> None:
    """Pages of this server and of named origins may send everything, other pages only safe methods;
    what does not come from a page is not affected. Refusals come before the body is read."""
    settings = Settings(allowed_hosts=HERE, cors_origins=cors, trusted_proxies=PROXY)
    headers = {
        "host": host,
        "sec-fetch-site": site,
        "origin": origin,
        "x-forwarded-host": forwarded,
        "x-forwarded-for": None if forwarded is None else "203.0.113.5",
    }
    sent = {name: value for name, value in headers.items() if value is not None}
    assert await status(settings, method, "/predict", sent, peer) == code


async def forwarded(*lines: tuple[str, str], peer: str = PROXY) -> tuple[list[bytes], str]:
    """The forwarded hosts and the client of a request with these headers, if `PROXY` is trusted."""
    scope = {
        "type": "http",
        "client": (peer, 1),
        "headers": [(name.encode(), value.encode()) for name, value in lines],
    }

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((context_of(scope).forwarded_hosts, scope["client"][0]))

    seen: list[tuple[list[bytes], str]] = []
    await ProxyHeaders(application, PROXY)(scope, None, None)  # type: ignore[arg-type]
    return seen[0]


async def test_forwarded_hosts_on_several_lines() -> None:
    """A name behind the first line counts, too."""
    hosts, _ = await forwarded(("x-forwarded-host", HERE), ("x-forwarded-host", EVIL))
    assert hosts == [HERE.encode(), EVIL.encode()]


@pytest.mark.parametrize(
    "value",
    [",".join([HERE] * (MAX_NAMES + 1)), "," * MAX_NAMES + HERE, " " * MAX_BYTES + HERE],
    ids=["names", "empty names", "bytes"],
)
@pytest.mark.parametrize("lines", [1, 17])
async def test_forwarded_hosts_are_bounded(value: str, lines: int) -> None:
    """A header of too many names or bytes is one name, which is rejected."""
    size = -(-len(value) // lines)
    parts = [value[at : at + size] for at in range(0, len(value), size)]
    hosts, _ = await forwarded(*(("x-forwarded-host", part) for part in parts))
    assert len(hosts) == 1
    allowed = AllowedHosts("localhost", [HERE])
    assert allowed.accepts(HERE.encode()) and not allowed.accepts(hosts[0])


@pytest.mark.parametrize("before", [0, MAX_NAMES - 2, MAX_NAMES, 4000])
@pytest.mark.parametrize("forged", [PROXY, EVIL, "", "x" * MAX_BYTES, "x" * (MAX_BYTES - 20)])
@pytest.mark.parametrize("lines", [1, 2])
async def test_forwarded_addresses_are_bounded(before: int, forged: str, lines: int) -> None:
    """The client is the last address that is not trusted, whatever it has sent before that."""
    sent = ",".join([forged] * before)
    own = f"203.0.113.5, {PROXY}"
    headers = [sent, own] if lines == 2 else [f"{sent},{own}"]
    assert await forwarded(*(("x-forwarded-for", value) for value in headers)) == (
        [],
        "203.0.113.5",
    )


async def test_forwarded_addresses_that_are_read_are_bounded() -> None:
    """uvicorn's middleware gets at most so many of them, however long the header is."""
    lines = [(b"x-forwarded-for", b",".join([PROXY.encode()] * 400)) for _ in range(10)]
    scope = {"type": "http", "client": (PROXY, 1), "headers": lines}

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        ((_, value),) = scope["headers"]
        assert value.count(b",") == MAX_NAMES - 1
        assert scope["client"] == (PROXY, 0)

    await ProxyHeaders(application, PROXY)(scope, None, None)  # type: ignore[arg-type]


async def test_forwarded_addresses_of_other_peers_are_ignored() -> None:
    """A peer that is not trusted remains the client."""
    assert await forwarded(("x-forwarded-for", "203.0.113.5"), peer=CLIENT) == ([], CLIENT)


@pytest.fixture
async def app(engine: FakeEngine) -> AsyncIterator[FastAPI]:
    app = create_app(Settings(), engine.load)
    async with app.router.lifespan_context(app):
        yield app


PATHS = [
    *create_app(Settings(), FakeEngine().load).openapi()["paths"],
    *("/", "/docs", "/openapi.json", "/page/app.js", "/nowhere", "/v2/", "/healthz/", "//healthz"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
async def test_only_probes_and_metrics_are_served_for_every_host(
    app: FastAPI, method: str, path: str
) -> None:
    """By whatever method and at whatever path: 421, in the shape of the protocol."""
    path = path.format(model="fake", version="7")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{EVIL}") as client:
        response = await client.request(method, path)
    if path in PROBE_PATHS:
        assert response.status_code == {"GET": 200}.get(method, 405)
        return
    assert response.status_code == 421
    if method == "HEAD":
        return
    body = response.json()
    detail = body["error"] if path.startswith("/v2") else body["detail"]
    assert repr(EVIL) in detail and "SHOAL_ALLOWED_HOSTS" in detail
    assert response.headers["x-request-id"]
    assert path.startswith("/v2") or body["code"] == "unknown_host"


POSTS = [
    path
    for path, operations in create_app(Settings(), FakeEngine().load).openapi()["paths"].items()
    if "post" in operations
]


@pytest.mark.parametrize("path", POSTS)
async def test_every_post_refuses_pages_elsewhere(app: FastAPI, path: str) -> None:
    """403, in the shape of the protocol, and the request is logged with its code."""
    path = path.format(model="fake", version="7")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.post(path, files={"img": png(7)}, headers={"origin": OTHER})
    assert response.status_code == 403
    body = response.json()
    detail = body["error"] if path.startswith("/v2") else body["detail"]
    assert "SHOAL_CORS_ORIGINS" in detail
    assert path.startswith("/v2") or body["code"] == "cross_site"


def test_a_refusal_is_described_wherever_it_may_come() -> None:
    """421 in every operation but probes and metrics, 403 cross_site in every POST."""
    paths = create_app(Settings(), FakeEngine().load).openapi()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            codes = {
                code
                for response in operation["responses"].values()
                for content in response.get("content", {}).values()
                for code in content.get("examples", {})
            }
            assert (PROBLEMS[UnknownHost].code in codes) is (path not in PROBE_PATHS), path
            assert (PROBLEMS[CrossSite].code in codes) is (method == "post"), path
    assert documented([UnknownHost])[421]["description"]


async def test_a_refusal_is_logged(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    """Like every other request, with its code."""
    caplog.set_level(logging.INFO, "shoal")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{EVIL}") as client:
        await client.get("/v2")
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    assert [(each["status"], each["code"]) for each in fields if "code" in each] == [
        (421, "unknown_host")
    ]


@pytest.mark.parametrize(
    ("bound", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.0.0.53", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("shoal.example", False),
    ],
)
def test_is_loopback(bound: str, loopback: bool) -> None:
    assert is_loopback(bound) is loopback


def test_hosts_for_people() -> None:
    """Addresses are not listed one by one: all of them are accepted."""
    assert str(AllowedHosts("0.0.0.0", [])) == "any IP address, localhost"
    listed = ["shoal", "*.example.com", "10.0.0.1", "[::1]:80"]
    assert str(AllowedHosts("::", listed)) == "any IP address, *.example.com, localhost, shoal"
    assert str(AllowedHosts("::", ["a", "*"])) == "every host"
