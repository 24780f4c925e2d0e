"""Content that does not change, served from memory."""

from __future__ import annotations

import httpx
import pytest
from fastapi import Request
from starlette.types import Message

from service.api.documentation import FOLDER, MEDIA_TYPES
from service.http.files import PIECE_BYTES, serve

FILES = [f"/static-offline-docs/{name}" for name in MEDIA_TYPES]


@pytest.mark.parametrize("path", ["/openapi.json", *FILES])
async def test_documentation_is_sent_once(client: httpx.AsyncClient, path: str) -> None:
    """A client that has the content gets 304 without it, and HEAD gets the headers."""
    full = await client.get(path)
    assert full.status_code == 200 and full.headers["cache-control"] == "no-cache"
    etag = {"if-none-match": full.headers["etag"]}
    known = await client.get(path, headers=etag)
    assert (known.status_code, known.content) == (304, b"")
    other = await client.get(path, headers={"if-none-match": '"other"'})
    assert (other.status_code, other.content) == (200, full.content)
    head = await client.head(path)
    assert head.headers["content-length"] == str(len(full.content))


@pytest.mark.parametrize("path", FILES)
async def test_documentation_has_its_files(client: httpx.AsyncClient, path: str) -> None:
    """Each file of the documentation is complete and has its media type."""
    name = path.rpartition("/")[2]
    response = await client.get(path)
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-type"].partition(";")[0] == MEDIA_TYPES[name]


@pytest.mark.parametrize("path", ["", "redoc.standalone.js", "../core.py", "nothing.css"])
async def test_documentation_has_no_other_files(client: httpx.AsyncClient, path: str) -> None:
    """Other files of the package are not served."""
    response = await client.get(f"/static-offline-docs/{path}".replace("..", "%2e%2e"))
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES]
)
async def test_files_are_sent_in_pieces(size: int) -> None:
    """A connection gets at most PIECE_BYTES bytes at once, and all bytes in the end."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "headers": []}
    response = await serve(b"x" * size, "text/plain", {})(Request(scope))
    await response(scope, receive, send)
    start, *pieces = sent
    assert (b"content-length", str(size).encode()) in start["headers"]
    assert sum(len(piece["body"]) for piece in pieces) == size
    assert max(len(piece["body"]) for piece in pieces) <= PIECE_BYTES
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
