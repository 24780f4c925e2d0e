"""What a hundred hostile connections do to the memory, to others and to a stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time

import httpx
import pytest

from service.grpc.http2_frames import DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, field, frame
from service.server.connection import HEAD_BYTES
from service.server.transport import READ_BYTES
from tests.e2e.process import PATIENCE, Server
from tests.faults.faulty import FAULTY
from tests.faults.process import resident
from tests.faults.wire import address

pytestmark = [pytest.mark.slow, pytest.mark.faults]

COUNT = 100
SECONDS = 4
MEGABYTE = 2**20
BOUND = COUNT * (3 * HEAD_BYTES + 4 * READ_BYTES) / MEGABYTE
"""MB: what `service/server/connection.py` says that they may hold."""
SLACK = 16
"""MB that allocators keep."""
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
OFFER = b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
ATTACKS = {
    "pipelined requests": b"GET / HTTP/1.1\r\nHost:\r\n\r\n" * 200_000,
    "pipelined requests with large heads": (GET + b"X: " + b"x" * 60_000 + b"\r\n\r\n") * 50,
    "pipelined offers to upgrade": (GET + OFFER) * 50_000,
    "headers": GET + b"a:\r\n" * 1_000_000,
    "half a head": GET + b"X: " + b"x" * 60_000,
    "blank lines": b"\r\n" * 1_000_000,
    "a body in chunks of one byte": POST + CHUNKED + b"1\r\nx\r\n" * 1_000_000,
    "a body of blank lines": POST + CHUNKED + (b"1000\r\n" + b"\r\n" * 2048 + b"\r\n") * 1000,
    "an extension without end": POST + CHUNKED + b"5;" + b"a" * 5_000_000,
    "trailers without end": POST + CHUNKED + b"0\r\n" + b"a:\r\n" * 1_000_000,
}


def head(path: str) -> bytes:
    """The header block of a gRPC call."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "shoal"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    return b"".join(field(name, value) for name, value in fields.items())


async def send(server: Server, stream: bytes, until: float) -> None:
    """Send `stream`, take nothing of what is answered, and begin again when cut off."""
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket() as connection, contextlib.suppress(OSError, TimeoutError):
            connection.setblocking(False)
            async with asyncio.timeout_at(until):
                await loop.sock_connect(connection, address(server))
                await loop.sock_sendall(connection, stream)
                await loop.sock_recv(connection, 1)
        if loop.time() >= until:
            return
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_hostile_connections_are_bounded(attack: str) -> None:
    """A hundred of them stay within the stated memory; new clients and the shutdown are not
    affected."""
    with Server(*FAULTY, SHOAL_SHUTDOWN_TIMEOUT="2") as server:
        server.wait_until_ready()
        rest, most, asked = resident(server.pid), 0.0, 0
        until = asyncio.get_running_loop().time() + SECONDS
        async with asyncio.TaskGroup() as group:
            for _ in range(COUNT):
                group.create_task(send(server, ATTACKS[attack], until))
            while asyncio.get_running_loop().time() < until:
                async with httpx.AsyncClient(timeout=PATIENCE) as client:
                    assert (await client.get(f"{server.url}/healthz")).status_code == 200
                asked += 1
                most = max(most, resident(server.pid))
                await asyncio.sleep(0.05)
        assert server.stop() == 0
    print(f"{attack}: {rest:.0f} MB, at most {most:.0f}; {asked} probes")
    assert most - rest < BOUND + SLACK
    assert asked > 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_memory_is_returned_after_connections_close() -> None:
    """The memory of many full connections is returned to the system."""
    large = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    large += b"Content-Length: 9999999\r\n\r\n" + bytes(250_000)
    with Server(*FAULTY) as server:
        server.wait_until_ready()
        rest, most = resident(server.pid), 0.0
        with contextlib.ExitStack() as stack:
            for _ in range(400):
                stubborn = stack.enter_context(socket.socket())
                stubborn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                stubborn.connect(address(server))
                stubborn.settimeout(PATIENCE)
                with contextlib.suppress(TimeoutError):
                    stubborn.sendall(large)
            end = time.monotonic() + PATIENCE
            while most < rest + 60 and time.monotonic() < end:
                most = max(most, resident(server.pid))
                time.sleep(0.05)
        began = time.monotonic()
        while (left := resident(server.pid)) > rest + 30 and time.monotonic() < began + PATIENCE:
            time.sleep(0.1)
        print(
            f"{rest:.0f} MB, at most {most:.0f}, {left:.0f} after {time.monotonic() - began:.1f} s"
        )
        assert server.stop() == 0
    assert most >= rest + 60
    assert left <= rest + 30


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_memory_is_returned_after_grpc_connections_close() -> None:
    """The memory of many incomplete gRPC messages is returned to the system."""
    data = b"".join(frame(DATA, 0, 1, b"\0\0\x90\0\0" + bytes(15_000)) for _ in range(3))
    path = "/inference.GRPCInferenceService/ModelInfer"
    with Server(*FAULTY, SHOAL_GRPC_PORT="0") as server:
        server.wait_until_ready()
        host, _, port = server.address("gRPC on").rpartition(":")
        rest, most = resident(server.pid), 0.0
        call = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, head(path)) + data
        with contextlib.ExitStack() as stack:
            for _ in range(900):
                one = stack.enter_context(socket.create_connection((host, int(port))))
                one.sendall(call)
            end = time.monotonic() + PATIENCE
            while most < rest + 60 and time.monotonic() < end:
                most = max(most, resident(server.pid))
                time.sleep(0.05)
        end = time.monotonic() + PATIENCE
        while (left := resident(server.pid)) > rest + 45 and time.monotonic() < end:
            time.sleep(0.1)
        print(f"{rest:.0f} MB, at most {most:.0f}, {left:.0f} afterwards")
        assert server.stop() == 0
    assert most >= rest + 60
    assert left <= rest + 45


async def test_stop_does_not_wait_for_clients_that_do_not_read() -> None:
    """Requests whose answers are not read are cut off after the shutdown timeout."""
    with Server(*FAULTY, SHOAL_SHUTDOWN_TIMEOUT="1") as server, contextlib.ExitStack() as stack:
        server.wait_until_ready()
        wanted = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300
        for _ in range(8):
            stubborn = stack.enter_context(socket.create_connection(address(server)))
            stubborn.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                stubborn.sendall(wanted)
        await asyncio.sleep(1)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < PATIENCE / 4
