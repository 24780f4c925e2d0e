"""Clients for the rehearsals: each asks again as soon as it is answered, and nothing is forgiven.

A request is lost unless it gets a whole answer with status 200, whatever the reason: refused,
reset, cut short, 5xx. No retries. Standard library only.
"""

from __future__ import annotations

import asyncio
import collections
import http.client
import pathlib
import time
import urllib.parse
import zlib

PATIENCE = 30.0
"""Seconds that a client waits for an answer."""


def made_up_picture() -> bytes:
    """A grey PNG of 32 x 32, for lack of a photo."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    head = (32).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])  # 8 bits of grey, no interlace
    rows = (b"\0" + bytes(range(0, 256, 8))) * 32
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class Load:
    """`clients` that ask until `stop`, each over a connection of its own for each request."""

    def __init__(self, url: str, picture: bytes, clients: int) -> None:
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
        """Ask nothing more; what is under way is still waited for."""
        self._stopped = True

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._clients)))

    async def _client(self) -> None:
        while not self._stopped:
            began = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE):
                    fate = await self._ask()
            except (OSError, TimeoutError) as error:
                fate = type(error).__name__
            self.seconds.append(time.monotonic() - began)
            if fate == "200":
                self.answered += 1
            else:
                self.lost[fate] += 1

    async def _ask(self) -> str:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(self._request)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        status = head.split(b" ", 2)[1].decode() if head.startswith(b"HTTP/1.1 ") else "no answer"
        whole = f"content-length: {len(body)}\r\n".encode() in head.lower() + b"\r\n"
        return status if whole or status != "200" else "cut short"


def ask(url: str, picture: bytes | None = None) -> tuple[int, str]:
    """One request and its answer; (0, why) where there is none."""
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
    """A horse and a dog, if `folder` has files of such names, and otherwise something grey."""
    found = (
        {
            path.name: path.read_bytes()
            for subject in ("horse", "dog")
            for path in sorted(folder.glob(f"{subject}*.jpg"))[:1]
        }
        if folder
        else {}
    )
    return found or {"a grey square": made_up_picture()}
