"""What a request's body holds: an image, several images, or bytes for another to read.

A body is read as it arrives, never beyond the limit and never longer than the time allowed;
nothing is written to disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from starlette.requests import ClientDisconnect, Request

from service.budget import LOOK, Share
from service.errors import BodyTooLarge, TooManyImages, UploadTimeout
from service.form import Form, boundary
from service.wishes import header

# Each of the three that follow tells its share of the budget of every chunk, and raises
# BodyTooLarge, UploadTimeout, QueueFull and Starlette's ClientDisconnect.


async def read_image(request: Request, max_bytes: int, max_seconds: float, share: Share) -> bytes:
    """The image in a form's field `img` or in the body itself; it may be empty.

    Raises MissingImage, too.
    """
    content_type = header(request, b"content-type") or ""
    if content_type.lower().startswith("image/"):
        return await read_bytes(request, max_bytes, max_seconds, share)
    form = Form(boundary(content_type), _declared(request), most=1)
    await _receive(request, form, max_bytes, max_seconds, share)
    return form.images()[0]


async def read_images(
    request: Request, max_bytes: int, max_seconds: float, share: Share, *, max_images: int
) -> list[bytes]:
    """All images in a form's fields `img`: at least one, and any may be empty.

    Raises MissingImage and TooManyImages, too.
    """
    content_type = header(request, b"content-type") or ""
    form = Form(boundary(content_type), _declared(request), most=max_images + 1)
    await _receive(request, form, max_bytes, max_seconds, share)
    if len(images := form.images()) > max_images:
        raise TooManyImages(
            f"The form has more than the {max_images} images that are allowed. "
            "Send the others in another request."
        )
    return images


async def read_bytes(request: Request, max_bytes: int, max_seconds: float, share: Share) -> bytes:
    """The body as it is."""
    body = _Raw()
    await _receive(request, body, max_bytes, max_seconds, share)
    return b"".join(body.chunks)


class _Body(Protocol):
    def write(self, chunk: bytes) -> None: ...


class _Raw:
    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self.chunks.append(chunk)


async def _receive(
    request: Request, body: _Body, max_bytes: int, max_seconds: float, share: Share
) -> None:
    """Hand `body` every chunk as it arrives."""
    if _declared(request) > max_bytes:
        raise _too_large(max_bytes)
    received = 0
    try:
        async with asyncio.timeout(max_seconds) as limit:
            with _watched(share, limit):
                more = True
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunk: bytes = message.get("body", b"")
                    more = message.get("more_body", False)
                    received += len(chunk)
                    if received > max_bytes:
                        raise _too_large(max_bytes)
                    share.add(len(chunk))
                    body.write(chunk)
    except TimeoutError as error:
        raise share.fault or UploadTimeout(
            f"The upload did not arrive within {max_seconds:g} seconds: {received:,} bytes did. "
            "Send a smaller image, or use a faster connection."
        ) from error


@contextmanager
def _watched(share: Share, limit: asyncio.Timeout) -> Iterator[None]:
    """Within, `share` is looked at every now and then, and `limit` is over when it is ended."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        timer = loop.call_later(LOOK, look)
        share.look()

    def stop() -> None:
        if not limit.expired():
            limit.reschedule(loop.time())

    timer = loop.call_later(LOOK, look)
    try:
        with share.arriving(stop):
            yield
    finally:
        timer.cancel()


def _declared(request: Request) -> int:
    """The length of the body; -1 where the request does not say."""
    declared = header(request, b"content-length") or ""
    return int(declared) if declared.isdecimal() else -1


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The upload is larger than the {max_bytes:,} bytes that are allowed. Send a smaller image."
    )
