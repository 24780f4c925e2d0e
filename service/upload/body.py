"""Reads the bodies of requests, within limits on their size, arrival time and memory.

Bodies are kept in memory and not written to disk. The memory of all bodies together is limited. A
body counts toward this limit as its bytes arrive, and not when its headers announce its length. Two
rules prevent slow clients from using up the memory:

- Bodies that have been arriving for longer than `CHECK_INTERVAL` count as slow. All slow bodies
  together may hold at most half of the memory. If slow bodies hold more, the slowest body is
  rejected.
- A body is rejected if it arrives at less than `MIN_RATE` after `GRACE` checks.

The rate of a body is an exponential moving average: the rate in the last `CHECK_INTERVAL` has a
weight of one half.
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
"""Seconds between two checks of the rate of a body."""
GRACE = 3
"""Number of checks after which a body must arrive at `MIN_RATE` or faster."""
MIN_RATE = 1024
"""Minimum rate of arrival of a body, in bytes per second."""

_COMPLETE = nullcontext()


class UploadMemory:
    """The memory that all bodies of this process share."""

    def __init__(
        self, max_bytes: int, max_upload_bytes: int | None = None, max_seconds: float = math.inf
    ) -> None:
        """
        Args:
            max_bytes: Maximum number of bytes that all bodies may hold at the same time.
            max_upload_bytes: Maximum size of one body, in bytes. None: the same as `max_bytes`.
            max_seconds: Maximum number of seconds until one body has arrived.
        """
        self.max_bytes = max_bytes
        self.held = 0
        """Number of bytes that all bodies hold now."""
        self.peak = 0
        """Maximum of `held` since the process last returned free memory to the operating system."""
        self._max_upload_bytes = max_bytes if max_upload_bytes is None else max_upload_bytes
        self._max_seconds = max_seconds
        self._slow = set[Lease]()
        self._held_by_slow = 0

    def lease(self, max_upload_bytes: int | None = None) -> Lease:
        """Create a lease, which counts the memory of one body.

        `max_upload_bytes`: maximum size of the body in bytes. None: the constructor's
        `max_upload_bytes`.
        """
        max_bytes = self._max_upload_bytes if max_upload_bytes is None else max_upload_bytes
        return Lease(self, max_bytes, self._max_seconds)

    def add(self, lease: Lease, count: int) -> None:
        """Count `count` more bytes of the body of `lease`. Raises UploadMemoryFull.

        If slow bodies hold too much memory, the slowest body is rejected.
        """
        if self.held + count > self.max_bytes:
            raise UploadMemoryFull("uploads hold the maximum amount of memory")
        self.held += count
        self.peak = max(self.peak, self.held)
        lease.held += count
        if lease in self._slow:
            self._held_by_slow += count
            self._make_room()

    def mark_slow(self, lease: Lease) -> None:
        """Count the body of `lease` as slow. No effect if the body already counts as slow."""
        if lease not in self._slow:
            self._slow.add(lease)
            self._held_by_slow += lease.held
            self._make_room()

    def unmark_slow(self, lease: Lease) -> None:
        """Stop counting the body of `lease` as slow. No effect on a body that is not slow."""
        if lease in self._slow:
            self._slow.remove(lease)
            self._held_by_slow -= lease.held

    def _make_room(self) -> None:
        while self._held_by_slow > self.max_bytes / 2:
            slowest = min(self._slow, key=lambda lease: lease.rate)
            slowest.reject(UploadMemoryFull("slow uploads hold the maximum amount of memory"))


class Lease:
    """Counts the upload memory that one body holds.

    A lease is a context manager. `release` or the end of the block gives the memory back.
    """

    def __init__(self, memory: UploadMemory, max_bytes: int, max_seconds: float) -> None:
        """
        Args:
            memory: The memory that all bodies share.
            max_bytes: Maximum size of this body, in bytes.
            max_seconds: Maximum number of seconds until this body has arrived.
        """
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds
        self.held = 0
        """Number of bytes that this body holds now."""
        self.rate = 0.0
        """Rate of arrival in bytes per second, averaged over the last checks."""
        self._memory = memory
        self._checks = 0
        self._held_before = 0
        self._reject: Callable[[Exception], None] | None = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give back the memory of the body."""
        self._memory.held -= self.held
        self.held = 0

    def add(self, count: int) -> None:
        """Count `count` more bytes of the body.

        Raises:
            BodyTooLarge: The body has more than `max_bytes` bytes.
            UploadMemoryFull: All bodies together hold the maximum amount of memory.
        """
        if self.held + count > self.max_bytes:
            raise self.too_large()
        self._memory.add(self, count)

    def keep(self, count: int) -> None:
        """Count `count` other bytes that cannot be freed before the body is freed.

        Raises UploadMemoryFull.
        """
        self._memory.add(self, count)
        self._held_before += count  # these bytes do not count for the rate

    def begin(self, reject: Callable[[Exception], None]) -> None:
        """Record that the body begins to arrive. `reject` is called if the body is rejected."""
        self._reject = reject

    def end(self) -> None:
        """Record that the body has arrived, or that its request has ended."""
        self._reject = None
        self._memory.unmark_slow(self)

    def check(self) -> None:
        """Check the rate of the body, and reject the body if it is too slow.

        `Arrival` calls this method every `CHECK_INTERVAL` seconds until the body has arrived.
        """
        rate, self._held_before = (self.held - self._held_before) / CHECK_INTERVAL, self.held
        self.rate = (self.rate + rate) / 2 if self._checks else rate
        self._checks += 1
        if self._checks >= GRACE and self.rate < MIN_RATE:
            seconds = self._checks * CHECK_INTERVAL
            self.reject(
                UploadTimeout(
                    f"The upload arrives too slowly: {self.held:,} bytes arrived in {seconds:g} "
                    f"seconds, and the rate is below {MIN_RATE:,} bytes per second. Use a faster "
                    "connection."
                )
            )
        else:
            self._memory.mark_slow(self)

    def reject(self, error: Exception) -> None:
        """Make the block that reads the body raise `error`. No effect if the block has ended."""
        self._memory.unmark_slow(self)
        if self._reject is not None:
            self._reject(error)
            self._reject = None

    def too_large(self) -> BodyTooLarge:
        """Return the exception for a body that is larger than `max_bytes`."""
        return BodyTooLarge(
            f"The upload is larger than the maximum of {self.max_bytes:,} bytes. "
            "Send a smaller image."
        )


# In all functions below, `lease` counts the memory of the body. All of these functions raise
# BodyTooLarge, UploadTimeout, UploadMemoryFull and ClientDisconnect.


async def read_image(request: Request, lease: Lease) -> bytes:
    """Read one image: the first field `img` of a form, or the body itself.

    The body itself is the image if its Content-Type is `image/...`. The result may be empty. Raises
    MissingImage if the form has no field `img`.
    """
    content_type = context_of(request.scope).header(b"content-type") or ""
    if content_type.lower().startswith("image/"):
        return await read_bytes(request, lease)
    form = await _read_form(request, lease, content_type, max_images=1)
    return form.images()[0]


async def read_images(request: Request, lease: Lease, max_images: int) -> list[bytes]:
    """Read the images in all fields `img` of a form. Each image may be empty.

    Raises:
        MissingImage: The form has no field `img`.
        TooManyImages: The form has more than `max_images` fields `img`.
    """
    content_type = context_of(request.scope).header(b"content-type") or ""
    form = await _read_form(request, lease, content_type, max_images + 1)
    if len(images := form.images()) > max_images:
        raise TooManyImages(
            f"The form has more than {max_images} images, which is the maximum. Send the other "
            "images in another request."
        )
    return images


async def read_bytes(request: Request, lease: Lease) -> bytes:
    """Read the whole body."""
    body = io.BytesIO()  # a list of chunks would take 40 more bytes for each chunk
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
