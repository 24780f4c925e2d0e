"""Many clients and strange ones, and a system that gives little, in real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import socket
import sys
import time
from collections import Counter

import httpx
import pytest

from benchmarks.processes import started
from service.server.server import ACCEPTS
from tests.e2e.process import PATIENCE, REAL, ROOT, SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow
HORSE = png(7)
SLOW = 1000
GET = b"GET /healthz HTTP/1.1\r\nHost: shoal\r\n\r\n"
HEAD = b"POST /predict HTTP/1.1\r\nHost: shoal\r\nX-Slow: "
BODY = (
    b"POST /predict HTTP/1.1\r\nHost: shoal\r\nContent-Type: image/png\r\n"
    b"Content-Length: 100000\r\n\r\n"
)


def limited(what: str, most: int, module: str) -> tuple[str, str]:
    """Arguments for Python that run `module` within a limit of the system."""
    limit = f"resource.setrlimit(resource.{what}, ({most}, {most}))"
    return "-c", f"import resource, runpy; {limit}; runpy.run_module({module!r}, None, '__main__')"


def address(server: Server) -> tuple[str, int]:
    url = httpx.URL(server.url)
    return url.host, url.port or 80


@pytest.mark.parametrize(
    ("trusted", "statuses"), [("127.0.0.1", [200, 429, 200, 429]), ("", [200, 429, 429, 429])]
)
def test_proxy_names_the_client_where_it_is_trusted(trusted: str, statuses: list[int]) -> None:
    """A trusted proxy names the client; behind another proxy, the proxy is the client."""
    limit = {"SHOAL_RATE_LIMIT": "0.01", "SHOAL_TRUSTED_PROXIES": trusted}
    with Server(*SCRIPTED, **limit) as server:
        server.wait_until_ready()
        found = [
            httpx.post(
                f"{server.url}/predict",
                files={"img": HORSE},
                headers={"x-forwarded-for": f"198.51.100.9, {client}"},
            ).status_code
            for client in ("203.0.113.1", "203.0.113.1", "203.0.113.2", "203.0.113.2")
        ]
    assert found == statuses


def test_server_survives_a_lack_of_descriptors() -> None:
    """With more connections than descriptors, new clients are served at little CPU time."""
    with Server(*limited("RLIMIT_NOFILE", 64, "tests.e2e.scripted")) as server:
        server.wait_until_ready()
        with contextlib.ExitStack() as stack:
            silent = [
                stack.enter_context(socket.create_connection(address(server))) for _ in range(200)
            ]
            before = server.cpu_seconds()
            time.sleep(1)
            assert server.cpu_seconds() - before < 0.3
            for _ in range(20):
                with socket.create_connection(address(server), timeout=PATIENCE) as newcomer:
                    newcomer.sendall(GET)
                    assert newcomer.recv(65536).startswith(b"HTTP/1.1 200")
            assert len(silent) == 200
        assert httpx.post(f"{server.url}/predict", files={"img": HORSE}).status_code == 200
        warnings = [record["message"] for record in server.log() if record["level"] == "warning"]
        assert server.stop() == 0
    assert [re.sub(r"\d+", "N", warning)[:24] for warning in warnings] == [
        "at most N connections in",
        "the maximum of N connect",
    ]


def test_server_accepts_many_connections_in_few_turns() -> None:
    """libuv accepts one connection per turn and listener, so each address has several listeners."""
    with Server(*SCRIPTED) as server:
        server.wait_until_ready()
        names = Counter[str]()
        for descriptor in pathlib.Path(f"/proc/{server.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the connection of a probe, closed by now
                names[os.readlink(descriptor)] += 1
        (_, listeners), *_ = names.most_common(1)
        assert listeners == ACCEPTS


def test_server_needs_no_writable_disk() -> None:
    """On a full or read-only disk the service starts, answers and stops."""
    with Server(*limited("RLIMIT_FSIZE", 0, REAL[1])) as server:
        server.wait_until_ready()
        assert httpx.post(f"{server.url}/predict", files={"img": HORSE}).status_code == 200
        assert server.stop() == 0
        assert server.errors() == ""


@pytest.mark.parametrize("output", ["/dev/full", None])
def test_server_survives_a_log_that_cannot_be_written(output: str | None) -> None:
    """With a full disk or closed output, requests are answered and the service stops cleanly."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = f">{output} 2>&1" if output else ">&- 2>&-"
    with started(
        ["sh", "-c", f'exec "{sys.executable}" {" ".join(SCRIPTED)} {where}'],
        cwd=ROOT,
        env={**os.environ, "SHOAL_PORT": str(port), "SHOAL_LOG_LEVEL": "debug"},
    ) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/readyz").status_code == 200:
                        break
                time.sleep(0.05)
            for _ in range(50):
                response = client.post("/predict", files={"img": HORSE})
                assert response.status_code == 200 and response.json()["class"] == "horse"
        process.terminate()
        assert process.wait(PATIENCE) == 0


async def drip(server: Server, first: bytes, cut: asyncio.Event) -> bytes:
    """Send `first` and then a byte a second; what comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection(*address(server))
    try:
        writer.write(first)
        answer = asyncio.ensure_future(reader.read())
        while not answer.done() and not cut.is_set():
            writer.write(b"x")
            await asyncio.wait({answer}, timeout=1)
        answer.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            return await answer
        return b""
    finally:
        writer.close()


async def test_slow_clients_are_cut_off() -> None:
    """A thousand clients that send a byte per second are cut off; other requests are all
    answered."""
    limits = {"SHOAL_MAX_UPLOAD_BYTES": "100000", "SHOAL_MAX_UPLOAD_MEMORY": "1000000"}
    with Server(*SCRIPTED, **limits) as server:
        server.wait_until_ready()
        cut = asyncio.Event()
        filling = BODY + bytes(2000)  # a thousand of these are twice what there is
        slow = [
            asyncio.create_task(drip(server, HEAD if n % 2 else filling, cut)) for n in range(SLOW)
        ]
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            await asyncio.sleep(3)
            for _ in range(100):
                response = await client.post(f"{server.url}/predict", files={"img": HORSE})
                assert response.status_code == 200
        answers = await asyncio.wait_for(asyncio.gather(*slow), PATIENCE)
        assert server.stop() == 0
    heads, bodies = answers[1::2], answers[::2]
    assert set(heads) == {b""}
    codes = {code for answer in bodies for code in re.findall(rb'"code":"(\w+)"', answer)}
    assert codes == {b"upload_timeout", b"upload_memory_full"}
