"""Limits on decoder processes ("decoders"): their number, memory and CPU time.

Ordinary images need little CPU time and memory according to their headers. All other images are
expensive and have their own decoders.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.decoding.image import BYTES_PER_PIXEL
from service.decoding.sandbox import RESTING_MEMORY

MIB = 2**20
ORDINARY_MEMORY = 88 * MIB
"""Maximum number of bytes of memory of a decoder for ordinary images."""
EXPENSIVE_MEMORY = 544 * MIB
"""Maximum number of bytes of memory of a decoder for expensive images. A progressive JPEG of 64
megapixels needs this amount."""
MIN_EXPENSIVE_MEMORY = 160 * MIB
"""Lower bound of `Limits.expensive_memory` in bytes, for machines with little memory."""
HEAP_MEMORY = 48 * MIB
"""Number of bytes that a decoder may take in addition to `EncodedImage.memory`: its libraries take
address space, and the allocator reserves memory and cannot reuse all freed memory. Images of medium
size need the largest addition."""
LARGE_HEAP_MEMORY = 32 * MIB
"""Replaces `HEAP_MEMORY` for the largest images. The value is lower, because the buffers of such
images are allocated outside the heap."""
ORDINARY_IMAGE_MEMORY = ORDINARY_MEMORY - HEAP_MEMORY
"""Maximum of `EncodedImage.memory` of an ordinary image."""
DESCRIPTORS, FORK_DESCRIPTORS = 3, 8
"""Numbers of file descriptors of the server: for each decoder, and for starting decoders."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on decoders. The kernel limits their memory, and the server limits their CPU time."""

    ordinary: int
    """Number of decoders for ordinary images."""
    expensive: int
    """Number of decoders for expensive images."""
    expensive_memory: int
    """Maximum number of bytes of memory of each decoder for expensive images."""
    max_seconds: float
    """Maximum CPU seconds of one image."""

    @property
    def max_image_memory(self) -> int:
        """Maximum of `EncodedImage.memory`. Images that need more memory are rejected."""
        return self.expensive_memory - LARGE_HEAP_MEMORY

    def most_pixels(self, kind: str) -> int:
        """Return the maximum number of pixels that the memory allows for this kind of image."""
        return self.max_image_memory // BYTES_PER_PIXEL[kind]

    @property
    def descriptors(self) -> int:
        """Maximum number of file descriptors of the server for all decoders together."""
        return DESCRIPTORS * (self.ordinary + self.expensive) + FORK_DESCRIPTORS

    @property
    def memory(self) -> int:
        """Maximum number of bytes of memory of all decoders and the template together."""
        most = self.ordinary * ORDINARY_MEMORY + self.expensive * self.expensive_memory
        return most + (self.ordinary + self.expensive + 1) * RESTING_MEMORY

    def __str__(self) -> str:
        return (
            f"{self.ordinary} decoders for ordinary images with {ORDINARY_MEMORY // MIB} MiB each, "
            f"{self.expensive} for expensive images with {self.expensive_memory // MIB} MiB each, "
            f"at most {self.memory // MIB} MiB in total; {self.max_seconds:g} s of CPU per image"
        )


def limits(processes: int, memory: int, max_seconds: float) -> Limits:
    """Return the largest limits that fit into `memory`.

    Args:
        processes: Maximum number of decoders for ordinary images, and also for expensive images.
        memory: Maximum number of bytes of memory of all decoders together.
        max_seconds: Maximum CPU seconds of one image.

    Raises:
        ValueError: `memory` is not enough for one decoder of each kind.
    """
    for ordinary in range(processes, 0, -1):
        left = memory - ordinary * ORDINARY_MEMORY
        left -= (ordinary + 2) * RESTING_MEMORY
        if left >= MIN_EXPENSIVE_MEMORY:
            each = EXPENSIVE_MEMORY + RESTING_MEMORY
            expensive = max(1, min(ordinary, (left + RESTING_MEMORY) // each))
            return Limits(ordinary, expensive, min(EXPENSIVE_MEMORY, left), max_seconds)
    least = ORDINARY_MEMORY + MIN_EXPENSIVE_MEMORY + 3 * RESTING_MEMORY
    raise ValueError(
        f"{memory // MIB} MiB is not enough for decoding: at least {least // MIB} MiB are needed"
    )
