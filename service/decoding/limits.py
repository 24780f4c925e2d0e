"""The number of decoder processes, and the memory and CPU time that each may take."""

from __future__ import annotations

from dataclasses import dataclass

from service.decoding.image import BYTES_PER_PIXEL

MIB = 2**20
ORDINARY_MEMORY = 88 * MIB
"""Bytes that a decoder for ordinary images may take."""
EXPENSIVE_MEMORY = 544 * MIB
"""Bytes that a decoder for expensive images may take: 64 megapixels of progressive JPEG."""
MIN_EXPENSIVE_MEMORY = 160 * MIB
HEAP_MEMORY = 48 * MIB
"""Bytes that decoding may take beyond `EncodedImage.memory`: those that the allocator takes in
advance or cannot use again. Images of medium size need most."""
LARGE_HEAP_MEMORY = 32 * MIB
"""The same for the largest images, whose buffers are allocated one by one."""
ORDINARY_IMAGE_MEMORY = ORDINARY_MEMORY - HEAP_MEMORY
"""Maximum `EncodedImage.memory` of an ordinary image."""
RESTING_MEMORY = 12 * MIB
"""Bytes that each decoder, and the template, takes before its first image, not counting memory that
they share."""
DESCRIPTORS, FORK_DESCRIPTORS = 3, 8
"""File descriptors of the server for each decoder, and for those that are started."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What decoding may take. The kernel enforces the memory, the server the CPU time."""

    ordinary: int
    """Processes for ordinary images."""
    expensive: int
    """Processes for expensive images."""
    expensive_memory: int
    """Bytes that each process for expensive images may take."""
    max_seconds: float
    """CPU time for one image, in seconds."""

    @property
    def max_image_memory(self) -> int:
        """Maximum `EncodedImage.memory` of an image that is decoded."""
        return self.expensive_memory - LARGE_HEAP_MEMORY

    def most_pixels(self, kind: str) -> int:
        """Maximum number of pixels of an image of this kind, by the memory that it takes."""
        return self.max_image_memory // BYTES_PER_PIXEL[kind]

    @property
    def descriptors(self) -> int:
        """File descriptors of the server that all decoders may take together."""
        return DESCRIPTORS * (self.ordinary + self.expensive) + FORK_DESCRIPTORS

    @property
    def memory(self) -> int:
        """Bytes that all decoders and the template may take together."""
        most = self.ordinary * ORDINARY_MEMORY + self.expensive * self.expensive_memory
        return most + (self.ordinary + self.expensive + 1) * RESTING_MEMORY

    def __str__(self) -> str:
        return (
            f"{self.ordinary} decoders for ordinary images with {ORDINARY_MEMORY // MIB} MiB each, "
            f"{self.expensive} for expensive ones with {self.expensive_memory // MIB} MiB each: at "
            f"most {self.memory // MIB} MiB in all, {self.max_seconds:g} s of CPU time an image"
        )


def limits(processes: int, memory: int, max_seconds: float) -> Limits:
    """The largest limits that fit into `memory`.

    Args:
        processes: Decoders for ordinary images, and maximum number of those for expensive ones.
        memory: Bytes that all decoders may take together.
        max_seconds: CPU time for one image, in seconds.

    Raises:
        ValueError: Not even one decoder of each kind fits.
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
        f"{memory // MIB} MiB is too little to decode images in: at least {least // MIB} are needed"
    )
