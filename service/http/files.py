"""Answers with content that does not change, served from memory.

Reading a file for each request takes milliseconds and several threads; a client needs no key to ask
for it. So content is read or rendered once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]
PIECE = 65_536
"""Bytes given to a connection at once: more would be copied for each client that reads slowly."""


class _File(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": [*self.raw_headers],
            }
        )
        size = len(self.body)
        for start in range(0, size or 1, PIECE):
            end = start + PIECE
            await send(
                {
                    "type": "http.response.body",
                    "body": self.body[start:end],
                    "more_body": end < size,
                }
            )


def serve(content: bytes, media_type: str, headers: Mapping[str, str]) -> Handler:
    """A handler that answers every request with `content`, or with 304 where the client has it.

    Args:
        content: The body.
        media_type: Its type, without a charset.
        headers: Further headers. An `ETag` (RFC 9110, section 8.8.3) is added.
    """
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**headers, "ETag": etag}

    async def handler(request: Request) -> Response:
        # Within: clients send lists, and proxies that compress put W/ in front.
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return _File(content, headers=headers, media_type=media_type)

    return handler
