"""Reads the bodies of requests, within limits on their size, their time and their memory.

A body is read as it arrives; nothing is written to disk. All bodies together hold at most a given
number of bytes. Slow clients cannot take that memory away from others:

- Bodies that have been arriving for longer than `CHECK_INTERVAL` hold at most half of the memory.
  If they would hold more, the slowest one is rejected.
- A body that arrives at less than `MIN_RATE` after `GRACE` checks is rejected.

The memory of a body counts as it arrives, not when the head announces it. The rate of a body is an
average to which the last `CHECK_INTERVAL` contributes half, so a client that stalls is soon slow.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

from starlette.requests import ClientDisconnect, Request

from service.errors import BodyTooLarge, TooManyImages, UploadMemoryFull, UploadTimeout
from service.http.context import context_of
from service.upload.arrival import Arrival
from service.upload.multipart import Form, boundary

CHECK_INTERVAL = 2.0
"""Seconds between two checks of a body that is arriving."""
GRACE = 3
"""Number of checks after which a body must arrive at `MIN_RATE`."""
MIN_RATE = 1024
"""Bytes per second."""

_COMPLETE = nullcontext()


class UploadMemory:
    """The memory that all bodies of this process may take."""

    def __init__(
        self, max_bytes: int, max_upload_bytes: int | None = None, max_seconds: float = math.inf
    ) -> None:
        """
        Args:
            max_bytes: Maximum number of bytes that all bodies hold at the same time.
            max_upload_bytes: Maximum size of one body, in bytes. None: `max_bytes`.
            max_seconds: Maximum time in which one body must arrive.
        """
        self.max_bytes = max_bytes
        self.held = 0
        """Bytes that bodies hold now."""
        self.peak = 0
        """Maximum of `held` since memory was last given back to the system."""
        self._max_upload_bytes = max_bytes if max_upload_bytes is None else max_upload_bytes
        self._max_seconds = max_seconds
        self._slow = set[Lease]()
        self._held_by_slow = 0

    def lease(self, max_upload_bytes: int | None = None) -> Lease:
        """A lease for one body. None: its maximum size is that of every upload."""
        max_bytes = self._max_upload_bytes if max_upload_bytes is None else max_upload_bytes
        return Lease(self, max_bytes, self._max_seconds)

    def add(self, lease: Lease, count: int) -> None:
        if self.held + count > self.max_bytes:
            raise UploadMemoryFull("uploads hold as much memory as they may")
        self.held += count
        self.peak = max(self.peak, self.held)
        lease.held += count
        if lease in self._slow:
            self._held_by_slow += count
            self._make_room()

    def mark_slow(self, lease: Lease) -> None:
        if lease not in self._slow:
            self._slow.add(lease)
            self._held_by_slow += lease.held
            self._make_room()

    def unmark_slow(self, lease: Lease) -> None:
        if lease in self._slow:
            self._slow.remove(lease)
            self._held_by_slow -= lease.held

    def _make_room(self) -> None:
        while self._held_by_slow > self.max_bytes / 2:
            slowest = min(self._slow, key=lambda lease: lease.rate)
            slowest.reject(UploadMemoryFull("slow uploads hold as much memory as they may"))


class Lease:
    """The share of one body in the upload memory, held until `release` or the end of the block."""

    def __init__(self, memory: UploadMemory, max_bytes: int, max_seconds: float) -> None:
        """
        Args:
            memory: The memory of all bodies.
            max_bytes: Maximum size of this body, in bytes.
            max_seconds: Maximum time in which it must arrive.
        """
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds
        self.held = 0
        """Bytes that this body holds now."""
        self.rate = 0.0
        """Bytes per second, averaged over the last checks."""
        self._memory = memory
        self._checks = 0
        self._held_before = 0
        self._reject: Callable[[Exception], None] | None = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """The body is not kept any longer."""
        self._memory.held -= self.held
        self.held = 0

    def add(self, count: int) -> None:
        """Count `count` more bytes.

        Raises BodyTooLarge, and UploadMemoryFull if there is not enough memory.
        """
        if self.held + count > self.max_bytes:
            raise self.too_large()
        self._memory.add(self, count)

    def keep(self, count: int) -> None:
        """Count `count` bytes that are kept because of this body, and are not bytes of it.

        Raises UploadMemoryFull.
        """
        self._memory.add(self, count)
        self._held_before += count  # they do not make it faster

    def begin(self, reject: Callable[[Exception], None]) -> None:
        """The body is arriving from now on. `reject` is called once if it is too slow."""
        self._reject = reject

    def end(self) -> None:
        """The body has arrived, or its request has ended."""
        self._reject = None
        self._memory.unmark_slow(self)

    def check(self) -> None:
        """Check the rate. Call it every `CHECK_INTERVAL` while the body is arriving."""
        rate, self._held_before = (self.held - self._held_before) / CHECK_INTERVAL, self.held
        self.rate = (self.rate + rate) / 2 if self._checks else rate
        self._checks += 1
        if self._checks >= GRACE and self.rate < MIN_RATE:
            seconds = self._checks * CHECK_INTERVAL
            self.reject(
                UploadTimeout(
                    f"The upload arrives too slowly: {self.held:,} bytes in {seconds:g} seconds, "
                    f"and less than {MIN_RATE:,} per second now. Use a faster connection."
                )
            )
        else:
            self._memory.mark_slow(self)

    def reject(self, error: Exception) -> None:
        """End the arrival of this body with `error`, unless it has ended."""
        self._memory.unmark_slow(self)
        if self._reject is not None:
            self._reject(error)
            self._reject = None

    def too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The upload is larger than the maximum of {self.max_bytes:,} bytes. "
            "Send a smaller image."
        )


# The functions below raise BodyTooLarge, UploadTimeout, UploadMemoryFull and ClientDisconnect.


async def read_image(request: Request, lease: Lease) -> bytes:
    """The image in the field `img` of a form, or in the body itself. It may be empty.

    Raises MissingImage if the form has no such field.
    """
    content_type = context_of(request.scope).header(b"content-type") or ""
    if content_type.lower().startswith("image/"):
        return await read_bytes(request, lease)
    form = await _read_form(request, lease, content_type, max_images=1)
    return form.images()[0]


async def read_images(request: Request, lease: Lease, max_images: int) -> list[bytes]:
    """The images in all fields `img` of a form: at least one. Each may be empty.

    Raises MissingImage if the form has no such field, TooManyImages.
    """
    content_type = context_of(request.scope).header(b"content-type") or ""
    form = await _read_form(request, lease, content_type, max_images + 1)
    if len(images := form.images()) > max_images:
        raise TooManyImages(
            f"The form has more than the maximum of {max_images} images. "
            "Send the others in another request."
        )
    return images


async def read_bytes(request: Request, lease: Lease) -> bytes:
    """The body as it is."""
    body = io.BytesIO()  # in a list, each small chunk would take 40 more bytes
    await _read(request, lease, body)
    return body.getvalue()


async def _read_form(request: Request, lease: Lease, content_type: str, max_images: int) -> Form:
    length = context_of(request.scope).content_length
    form = Form(boundary(content_type), length, max_images)
    await _read(request, lease, form)
    return form


class _Target(Protocol):
    def write(self, chunk: bytes, /) -> object: ...


async def _read(request: Request, lease: Lease, target: _Target) -> None:
    """Write every chunk of the body to `target` as it arrives."""
    context = context_of(request.scope)
    if context.content_length > lease.max_bytes:
        raise lease.too_large()
    with _COMPLETE if context.body_complete else Arrival(lease, CHECK_INTERVAL):
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            lease.add(len(chunk))
            target.write(chunk)
