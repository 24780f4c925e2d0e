"""Sends bytes to a server as they are, and reads its answers. No client corrects either."""

from __future__ import annotations

import asyncio
import contextlib
import re

import httpx

from tests.e2e.process import Server

PATIENCE = 30.0
NEXT_REQUEST = b"GET /healthz HTTP/1.1\r\nHost: shoal\r\nConnection: close\r\n\r\n"
"""Sent after another request. Whether it is answered shows where the server ends that request."""
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
_LENGTH = re.compile(rb"content-length: (\d+)\r\n", re.IGNORECASE)
_CODE = re.compile(rb'"code":"(\w+)"')


def post(path: str, content_type: str, body: bytes, headers: str = "") -> bytes:
    """Returns a complete POST request. `headers`: additional ones, each ending with CR LF."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def address(server: Server) -> tuple[str, int]:
    """Returns the host and the port of a server."""
    url = httpx.URL(server.url)
    return url.host, url.port or 80


async def exchange(server: Server, *pieces: bytes, pause: float = 0.0) -> list[str]:
    """Sends `pieces`, and reads until the server closes the connection.

    Args:
        server: The server.
        pieces: Bytes, sent one after the other.
        pause: Seconds after each piece.

    Returns:
        Each answer, as `status` or `status code`.

    Raises:
        TimeoutError: The server does not close the connection.
    """
    reader, writer = await asyncio.open_connection(*address(server))
    listening = asyncio.ensure_future(read_all(reader))
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


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Reads until the other side closes or resets the connection."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(1 << 16):
            received += chunk
    return bytes(received)


def answers(received: bytes) -> list[str]:
    """Parses a sequence of responses. Raises ValueError if it is not one."""
    parsed = []
    while received:
        head = _HEAD.match(received)
        if head is None:
            raise ValueError(f"not a response: {received[:200]!r}")
        length = _LENGTH.search(head[2])
        end = head.end() + (int(length[1]) if length else 0)
        code = _CODE.search(received, head.end(), end)
        parsed.append(f"{head[1].decode()} {code[1].decode()}" if code else head[1].decode())
        received = received[end:]
    return parsed
