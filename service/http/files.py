"""Serves content that does not change from memory.

Reading a file for each request would take milliseconds and several threads, and clients need no API
key for these files. So the content is read or rendered once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]
PIECE_BYTES = 65_536
"""Number of bytes that a connection gets at once. It keeps a copy of them for a slow client."""


class _File(Response):
    """A response that is sent in pieces."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": [*self.raw_headers],
            }
        )
        size = len(self.body)
        for start in range(0, size or 1, PIECE_BYTES):
            end = start + PIECE_BYTES
            await send(
                {
                    "type": "http.response.body",
                    "body": self.body[start:end],
                    "more_body": end < size,
                }
            )


def serve(content: bytes, media_type: str, headers: Mapping[str, str]) -> Handler:
    """Create a handler that answers with `content`, or with 304 if the client has it already.

    Args:
        content: The body of the answer.
        media_type: Media type of the content, without a charset.
        headers: Further headers. An `ETag` (RFC 9110, section 8.8.3) is added.
    """
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**headers, "ETag": etag}

    async def handler(request: Request) -> Response:
        # Not `==`: clients send lists, and proxies that compress add the prefix W/.
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return _File(content, headers=headers, media_type=media_type)

    return handler
