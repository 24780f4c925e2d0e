"""Runs a minimal HTTP server, which reads each request and sends a fixed response.

    python -m benchmarks.bare             an asyncio protocol
    python -m benchmarks.bare uvicorn     an ASGI application on uvicorn

A measurement of this server shows the lowest CPU time per request that is possible in Python. The
environment variable SHOAL_PORT sets the port.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import httptools
import uvicorn
import uvloop

BODY = b'{"status":"ok"}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)


class Bare(asyncio.Protocol):
    """A connection of the server without uvicorn."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(ANSWER)


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Sends the fixed response. This function is an ASGI application."""
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


async def serve(port: int) -> None:
    """Runs the server without uvicorn until the process ends."""
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    port = int(os.environ["SHOAL_PORT"])
    if sys.argv[1:] == ["uvicorn"]:
        uvicorn.run(
            bare, port=port, loop="uvloop", http="httptools", log_config=None, access_log=False
        )
    else:
        uvloop.run(serve(port))
