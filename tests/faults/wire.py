"""Bytes to a server and what comes back, with nothing in between that would mend either."""

from __future__ import annotations

import asyncio
import contextlib
import re

import httpx

from tests.e2e.process import Server

PATIENCE = 30.0
ANOTHER = b"GET /healthz HTTP/1.1\r\nHost: shoal\r\nConnection: close\r\n\r\n"
"""Sent behind a request: whether it is answered shows where the server takes that one to end."""
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
_LENGTH = re.compile(rb"content-length: (\d+)\r\n", re.IGNORECASE)
_CODE = re.compile(rb'"code":"(\w+)"')


def address(server: Server) -> tuple[str, int]:
    url = httpx.URL(server.url)
    return url.host, url.port or 80


async def exchange(server: Server, *pieces: bytes, pause: float = 0.0) -> list[str]:
    """Send `pieces`, then listen until the server closes the connection; its answers, as
    `status` or `status code`. Raises TimeoutError where it does not close it."""
    reader, writer = await asyncio.open_connection(*address(server))
    listening = asyncio.ensure_future(everything(reader))
    try:
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(pause)
            return answers(await listening)
    finally:
        listening.cancel()
        writer.close()


async def everything(reader: asyncio.StreamReader) -> bytes:
    """Until the other side closes, also where it does so by a reset."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(1 << 16):
            received += chunk
    return bytes(received)


def answers(received: bytes) -> list[str]:
    """What a sequence of responses says. Raises ValueError where it is none."""
    told = []
    while received:
        head = _HEAD.match(received)
        if head is None:
            raise ValueError(f"no response: {received[:200]!r}")
        length = _LENGTH.search(head[2])
        end = head.end() + (int(length[1]) if length else 0)
        code = _CODE.search(received, head.end(), end)
        told.append(f"{head[1].decode()} {code[1].decode()}" if code else head[1].decode())
        received = received[end:]
    return told
