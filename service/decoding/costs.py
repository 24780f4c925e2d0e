"""Costs: the CPU time that decoding an image takes, estimated from its header and its length.

Estimates depend on nothing that clients sent before, so no images make those of others useless.

The time depends on the pixels and, where entropy coding dominates, on the bytes: a baseline JPEG of
12 megapixels takes 8 to 61 ms, depending on its quality and noise. `work` combines both. With it,
estimates of photos and of drawings from 0.1 to 64 megapixels are right within a factor of 2.
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
"""Kind of image -> CPU seconds per unit of `work`, on a machine that takes `SAMPLE_SECONDS`."""
SAMPLE_SECONDS = 0.0056
"""CPU seconds that the sample took on the machine of the measurements."""
MAX_SLOWER = 8.0
"""Maximum ratio, up or down, of the time on this machine to the time on that one."""
PIXELS_PER_BYTE: Mapping[str, float] = {"JPEG": 17, "JPEG progressive": 11, "WebP": 5}
"""Pixels that take as long as one encoded byte, in formats where bytes count."""
MAX_BYTES_PER_PIXEL = 4
"""Bytes beyond that are no pixels, but comments and other metadata, which decoders skip."""
OVERHEAD = 0.0003
"""Seconds for any image, however small: setting up the decoder, resizing."""
BLOCK = 32
"""Decoders work in blocks of up to so many pixels a side, also where an image has fewer."""
SCANS: Mapping[str, int] = {"JPEG": 1, "JPEG progressive": 10}
"""Scans of an ordinary JPEG. Each further one visits all blocks again."""


def work(image: EncodedImage) -> float:
    """Amount of work to decode `image`, in pixels: its own, and those that its bytes count as."""
    blocks = BLOCK**2 * -(-image.width // BLOCK) * -(-image.height // BLOCK)
    usual = SCANS.get(image.kind)
    scans = max(1.0, jpeg.scans(image.data) / usual) if usual else 1.0
    size = min(len(image.data), MAX_BYTES_PER_PIXEL * image.pixels)
    return scans * blocks + PIXELS_PER_BYTE.get(image.kind, 0) * size


class Costs:
    """Estimates of the CPU time of decoding on this machine."""

    def __init__(self, sample_seconds: float = SAMPLE_SECONDS) -> None:
        """`sample_seconds`: CPU time that decoding the sample of `service.decoding.template` takes
        on this machine."""
        ratio = sample_seconds / SAMPLE_SECONDS
        self._slower = min(max(ratio, 1 / MAX_SLOWER), MAX_SLOWER)

    def estimate(self, image: EncodedImage) -> float:
        """CPU seconds that `image` will take."""
        return OVERHEAD + self._slower * SECONDS[image.kind] * work(image)
