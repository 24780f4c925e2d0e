"""Serves static content from memory.

Reading a file for each request would take milliseconds and several threads. Clients without an API
key may request the files, and could overload the server with such requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]
"""A function that responds to a request."""
PIECE_BYTES = 65_536
"""Maximum number of bytes that are passed to the connection at once. The connection copies these
bytes if the client reads slowly."""


class _File(Response):
    """A response that is sent in pieces, so that a connection copies at most one piece at a
    time."""

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
    """Create a handler that responds with `content`, or with 304 if the client already has it.

    Args:
        content: The body of the response.
        media_type: Media type of the content, without a charset.
        headers: Further headers of the response. The handler adds an `ETag` (RFC 9110, section
            8.8.3).
    """
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**headers, "ETag": etag}

    async def handler(request: Request) -> Response:
        # The header may be a list of ETags, and proxies that compress content add the prefix W/.
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return _File(content, headers=headers, media_type=media_type)

    return handler
