"""Estimates the CPU time of decoding an image from its header and its length.

Estimates do not depend on earlier images, so a client cannot influence the estimates for other
clients.

The CPU time depends on the number of pixels. If entropy coding takes most of the time, the CPU time
also depends on the number of bytes. For example, a baseline JPEG of 12 megapixels takes 8 to 61 ms,
depending on its quality and noise. `work` combines both numbers. The estimates of photos and
drawings from 0.1 to 64 megapixels are correct within a factor of 2.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.decoding import jpeg
from service.decoding.image import EncodedImage

SECONDS: Mapping[str, float] = {
    "JPEG": 0.5e-9,
    "JPEG progressive": 3e-9,
    "PNG": 24e-9,
    "PNG palette": 5.3e-9,
    "WebP": 9e-9,
    "WebP lossless": 24e-9,
    "BMP": 2.9e-9,
    "BMP run-length": 200e-9,
    "GIF": 5.6e-9,
}
"""CPU seconds per unit of `work`, by kind of image, as measured on the reference machine."""
SAMPLE_SECONDS = 0.0056
"""CPU seconds that decoding the sample images took on the reference machine."""
MAX_SLOWER = 8.0
"""Maximum ratio of this machine's CPU time to the CPU time of the reference machine. The minimum is
1 / `MAX_SLOWER`. Measured ratios outside this range are clipped."""
PIXELS_PER_BYTE: Mapping[str, float] = {"JPEG": 17, "JPEG progressive": 11, "WebP": 5}
"""Number of pixels that take as long to decode as one encoded byte, by kind. Other kinds: 0."""
MAX_BYTES_PER_PIXEL = 4
"""Maximum number of bytes per pixel that count as work. Decoders skip further bytes (metadata)."""
OVERHEAD = 0.0003
"""CPU seconds that every image takes, for example for resizing."""
BLOCK = 32
"""Maximum width and height of the blocks that decoders work in, in pixels. A smaller image takes as
long as a whole block."""
SCANS: Mapping[str, int] = {"JPEG": 1, "JPEG progressive": 10}
"""Number of scans of a typical JPEG, by kind. Decoders visit all blocks in each scan."""


def work(image: EncodedImage) -> float:
    """Return the amount of work to decode `image`, as a number of pixels.

    The result is the sum of two numbers. The first is the number of pixels in all blocks of the
    image. This number is multiplied by the number of scans and divided by the typical number of
    scans. The second number is the number of pixels that take as long to decode as the bytes of the
    image.
    """
    blocks = BLOCK**2 * -(-image.width // BLOCK) * -(-image.height // BLOCK)
    usual = SCANS.get(image.kind)
    scans = max(1.0, jpeg.scans(image.data) / usual) if usual else 1.0
    size = min(len(image.data), MAX_BYTES_PER_PIXEL * image.pixels)
    return scans * blocks + PIXELS_PER_BYTE.get(image.kind, 0) * size


class Costs:
    """Estimates of the CPU time of decoding on this machine."""

    def __init__(self, sample_seconds: float = SAMPLE_SECONDS) -> None:
        """
        Args:
            sample_seconds: CPU seconds that decoding the sample images of
                `service.decoding.template` takes on this machine.
        """
        ratio = sample_seconds / SAMPLE_SECONDS
        self._slower = min(max(ratio, 1 / MAX_SLOWER), MAX_SLOWER)

    def estimate(self, image: EncodedImage) -> float:
        """Return the estimated CPU seconds of decoding `image`."""
        return OVERHEAD + self._slower * SECONDS[image.kind] * work(image)
