"""The least that answers over a network: an asyncio protocol that reads a request and writes what
it always writes. `python -m benchmarks.bare` serves it; `... uvicorn` puts uvicorn in between.
"""

from __future__ import annotations

import asyncio
import logging
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
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(ANSWER)


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application."""
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    print(f"running on http://{host}:{port} ", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:] == ["uvicorn"]:
        logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
        port = int(os.environ.get("SHOAL_PORT", "0"))
        uvicorn.run(
            bare, port=port, loop="uvloop", http="httptools", log_config=None, access_log=False
        )
    else:
        uvloop.run(serve())
