"""Puts a server under load with several clients, and counts the requests that are lost.

Each client sends a request as soon as the previous request is complete. A request is lost if it
does not get a complete response with status 200, for example because the connection was refused or
reset. Lost requests are not sent again. The module uses the standard library only.
"""

from __future__ import annotations

import asyncio
import collections
import http.client
import pathlib
import time
import urllib.parse
import zlib

TIMEOUT = 30.0
"""Maximum number of seconds for a request."""


def made_up_picture() -> bytes:
    """Return a gray PNG of 32 x 32 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    head = (32).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])  # 8 bits of gray, not interlaced
    rows = (b"\0" + bytes(range(0, 256, 8))) * 32
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class Load:
    """Clients that send requests until `stop` is called. Each request has a new connection."""

    def __init__(self, url: str, picture: bytes, clients: int) -> None:
        """
        Args:
            url: URL to send pictures to, such as http://127.0.0.1:8000/predict.
            picture: Body of each request, a PNG.
            clients: Number of clients, each with one request in flight.
        """
        self.answered = 0
        self.lost: collections.Counter[str] = collections.Counter()
        self.seconds: list[float] = []
        parts = urllib.parse.urlsplit(url)
        self._address = parts.hostname or "", parts.port or 80
        head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            f"Content-Type: image/png\r\nContent-Length: {len(picture)}\r\n\r\n"
        )
        self._request = head.encode() + picture
        self._clients = clients
        self._stopped = False

    def stop(self) -> None:
        """Send no further requests. `run` returns when the requests in flight have ended."""
        self._stopped = True

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._clients)))

    async def _client(self) -> None:
        while not self._stopped:
            began = time.monotonic()
            try:
                async with asyncio.timeout(TIMEOUT):
                    result = await self._send()
            except (OSError, TimeoutError) as error:
                result = type(error).__name__
            self.seconds.append(time.monotonic() - began)
            if result == "200":
                self.answered += 1
            else:
                self.lost[result] += 1

    async def _send(self) -> str:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(self._request)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        status = head.split(b" ", 2)[1].decode() if head.startswith(b"HTTP/1.1 ") else "no response"
        complete = f"content-length: {len(body)}\r\n".encode() in head.lower() + b"\r\n"
        return status if complete or status != "200" else "incomplete"


def ask(url: str, picture: bytes | None = None) -> tuple[int, str]:
    """Send one request. Returns the status and the body, or 0 and the error without a response."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        if picture is None:
            connection.request("GET", parts.path)
        else:
            headers = {"Content-Type": "image/jpeg", "Accept": "text/plain"}
            connection.request("POST", parts.path, picture, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def photos(folder: pathlib.Path | None) -> dict[str, bytes]:
    """Return the first horse*.jpg and dog*.jpg in `folder`, or a gray square without such files."""
    found = (
        {
            path.name: path.read_bytes()
            for subject in ("horse", "dog")
            for path in sorted(folder.glob(f"{subject}*.jpg"))[:1]
        }
        if folder
        else {}
    )
    return found or {"a gray square": made_up_picture()}
