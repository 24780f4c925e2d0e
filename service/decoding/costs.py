"""Costs: the CPU time that decoding an image takes, estimated from its header and its length.

Promises
- An estimate is between 1/4 of and 4 times what was measured at start for the image's format, so
  no sequence of images makes estimates useless.
- One image changes the estimates of its format by at most 4 %, and those of others not at all.
- Small images change no estimate: most of their time is spent on everything but the pixels.

The time depends on the pixels and, where entropy coding dominates, on the bytes: a baseline JPEG of
12 megapixels takes 8 to 61 ms, depending on its quality and noise. `work` combines both. With it,
estimates of photos and of drawings from 0.1 to 64 megapixels are right within a factor of 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

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
LEAST_PIXELS = 100_000
"""Images with fewer pixels change no estimate."""
LEARNING = 0.05
"""Weight of the latest image in the estimate of its format."""
MAX_STEP = 2.0
"""Maximum ratio, up or down, by which one image can show an estimate to be wrong."""
MAX_FACTOR = 4.0
"""Maximum ratio, up or down, of an estimate to what was measured at start."""


def work(kind: str, pixels: int, size: int) -> float:
    """Amount of work to decode an image, in pixels: its own, and those that its bytes count as.

    `kind` is a key of `SECONDS`; `size` is the length of the image in bytes.
    """
    return pixels + PIXELS_PER_BYTE.get(kind, 0) * min(size, MAX_BYTES_PER_PIXEL * pixels)


class Costs:
    """Estimates of the CPU time of decoding on this machine, for each kind of image."""

    def __init__(self, sample_seconds: float = SAMPLE_SECONDS) -> None:
        """`sample_seconds`: CPU time that decoding the sample of `service.decoding.template` takes
        on this machine."""
        slower = _within(sample_seconds / SAMPLE_SECONDS, MAX_SLOWER)
        self._measured = {kind: slower * seconds for kind, seconds in SECONDS.items()}
        self._factors = dict.fromkeys(SECONDS, 1.0)

    def estimate(self, kind: str, pixels: int, size: int) -> float:
        """CPU seconds that an image of `pixels` pixels and `size` bytes will take.

        Raises KeyError for a kind that was not measured.
        """
        return self._factors[kind] * self._at_start(kind, pixels, size)

    def learn(self, kind: str, pixels: int, size: int, seconds: float) -> None:
        """Correct the estimates: an image that was decoded completely took `seconds` of CPU time.

        Raises KeyError for a kind that was not measured.
        """
        if pixels < LEAST_PIXELS or not 0 < seconds < math.inf:
            return
        error = seconds / self.estimate(kind, pixels, size)
        step = _within(error, MAX_STEP) ** LEARNING
        self._factors[kind] = _within(self._factors[kind] * step, MAX_FACTOR)

    def _at_start(self, kind: str, pixels: int, size: int) -> float:
        return OVERHEAD + self._measured[kind] * work(kind, pixels, size)


def _within(ratio: float, bound: float) -> float:
    return min(max(ratio, 1 / bound), bound)
