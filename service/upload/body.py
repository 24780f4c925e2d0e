"""What a request's body holds: an image, several images, or bytes for another to read.

A body is read as it arrives, never beyond the limit and never longer than the time allowed;
nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import io
from contextlib import nullcontext
from typing import Protocol

from starlette.requests import ClientDisconnect, Request

from batching import on_error
from service.errors import BodyTooLarge, TooManyImages, UploadTimeout
from service.http.cancel_scope import CancelScope
from service.http.request_headers import declared, header
from service.upload.memory import CHECK_INTERVAL, Lease
from service.upload.multipart import Form, boundary

WHOLE = "shoal.whole"
"""In a scope that the server has put it into: the body is all there, and reading does not wait."""

_NOT_AWAITED = nullcontext()

# Each of the three that follow tells its share of the budget of every chunk, and raises
# BodyTooLarge, UploadTimeout, QueueFull and Starlette's ClientDisconnect.


async def read_image(request: Request, max_bytes: int, max_seconds: float, share: Lease) -> bytes:
    """The image in a form's field `img` or in the body itself; it may be empty.

    Raises MissingImage, too.
    """
    content_type = header(request, b"content-type") or ""
    if content_type.lower().startswith("image/"):
        return await read_bytes(request, max_bytes, max_seconds, share)
    form = Form(boundary(content_type), declared(request), most=1)
    await _receive(request, form, max_bytes, max_seconds, share)
    return form.images()[0]


async def read_images(
    request: Request, max_bytes: int, max_seconds: float, share: Lease, *, max_images: int
) -> list[bytes]:
    """All images in a form's fields `img`: at least one, and any may be empty.

    Raises MissingImage and TooManyImages, too.
    """
    content_type = header(request, b"content-type") or ""
    form = Form(boundary(content_type), declared(request), most=max_images + 1)
    await _receive(request, form, max_bytes, max_seconds, share)
    if len(images := form.images()) > max_images:
        raise TooManyImages(
            f"The form has more than the {max_images} images that are allowed. "
            "Send the others in another request."
        )
    return images


async def read_bytes(request: Request, max_bytes: int, max_seconds: float, share: Lease) -> bytes:
    """The body as it is."""
    body = io.BytesIO()  # not a list of chunks: those may be small, and each takes 40 bytes more
    await _receive(request, body, max_bytes, max_seconds, share)
    return body.getvalue()


class _Body(Protocol):
    def write(self, chunk: bytes, /) -> object: ...


async def _receive(
    request: Request, body: _Body, max_bytes: int, max_seconds: float, share: Lease
) -> None:
    """Hand `body` every chunk as it arrives."""
    if declared(request) > max_bytes:
        raise _too_large(max_bytes)
    with _NOT_AWAITED if WHOLE in request.scope else Arrival(share, max_seconds):
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            if share.held + len(chunk) > max_bytes:
                raise _too_large(max_bytes)
            share.add(len(chunk))
            body.write(chunk)


class Arrival(CancelScope):
    """Within, `share` is looked at every now and then, until its time is up."""

    def __init__(self, share: Lease, max_seconds: float) -> None:
        super().__init__()
        self._share = share
        self._max_seconds = max_seconds

    def __enter__(self) -> None:
        super().__enter__()
        self._share.begins(self.interrupt)
        self._loop = asyncio.get_running_loop()
        self._began = self._look_at = self._loop.time()
        self._wait()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._timer.cancel()
        self._share.ends()
        super().__exit__(kind, *rest)

    def _wait(self) -> None:
        self._look_at += CHECK_INTERVAL
        end = self._began + self._max_seconds
        if self._look_at < end:
            self._timer = self._loop.call_at(self._look_at, self._look)
        else:
            self._timer = self._loop.call_at(end, self._time_is_up)

    def _look(self) -> None:
        with on_error(self.interrupt):
            self._share.look()
            self._wait()

    def _time_is_up(self) -> None:
        with on_error(self.interrupt):
            fault = UploadTimeout(
                f"The upload did not arrive within {self._max_seconds:g} seconds: "
                f"{self._share.held:,} bytes did. Send a smaller image, or use a faster connection."
            )
            self._share.end(fault)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The upload is larger than the {max_bytes:,} bytes that are allowed. Send a smaller image."
    )
