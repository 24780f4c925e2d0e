"""Images that are identified by their header, and the decoding of small ones in this process.

`identify` reads the header of an image and none of its pixels, which takes microseconds. It rejects
images of types that are not served, images without pixels, and images that are too large.

`EncodedImage.decode` decodes in this process, without limits on memory and CPU time. The event loop
calls it only where `is_bounded`: for small plain JPEGs and PNGs, whose cost
`tests/service/decoding/test_bounded.py` measures. All other images go to the decoder processes
(`service.decoding.pool`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from service.decoding import jpeg, picture, png
from service.decoding.headers import Header, read_header, too_large
from service.decoding.picture import CHANNELS, SIDE, Fault, Undecodable
from service.errors import BadImage, ImageTooExpensive, ImageTooLarge

Pixels = npt.NDArray[np.uint8]
"""uint8 (32, 32, 3): height x width x RGB, C-contiguous, read-only."""

# Within these bounds a plain image takes about a millisecond at most: tests/service/decoding/
# test_bounded.py. The side counts too: decoders work in blocks of up to 16 x 16 pixels, so an image
# that is one pixel wide has up to 16 times as much work as its pixels.
_BOUNDED_BYTES = 32 * 1024
_BOUNDED_PIXELS = 128 * 128
_BOUNDED_SIDE = 512

_SIZE = struct.Struct(">HH")

BYTES_PER_PIXEL = {
    "JPEG": 1,
    "JPEG progressive": 8,
    "PNG": 4,
    "PNG palette": 2,
    "WebP": 14,
    "WebP lossless": 14,
    "BMP": 4,
    "BMP run-length": 4,
    "GIF": 2,
}
"""Kind of image -> bytes per pixel that decoding takes at most, if the header is correct."""


COPIES = 3
"""Copies of an encoded image in its decoder: as it came, in a file object, in the library."""


@dataclass(slots=True)  # not frozen: that would make each five times as expensive to create
class EncodedImage:
    """An image whose header has been read, and none of its pixels."""

    data: bytes = field(repr=False)
    kind: str
    """A key of `BYTES_PER_PIXEL`: the format, and what else decides the cost."""
    width: int
    height: int
    max_pixels: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def format(self) -> str:
        """JPEG, PNG, WebP, BMP or GIF."""
        return self.kind.partition(" ")[0]

    @property
    def memory(self) -> int:
        """Bytes that decoding takes at most, if the header is correct."""
        return self.pixels * BYTES_PER_PIXEL[self.kind] + COPIES * len(self.data)

    @property
    def is_bounded(self) -> bool:
        """Whether the size of the image bounds the cost of decoding it to about a millisecond:
        then `decode_here` may run on the event loop."""
        if len(self.data) > _BOUNDED_BYTES or self.pixels > _BOUNDED_PIXELS:
            return False
        if max(self.width, self.height) > _BOUNDED_SIDE:
            return False
        if self.kind == "JPEG":
            return _is_plain_jpeg(self.data)
        return self.format == "PNG" and png.is_plain(self.data)

    def decode_here(self) -> Pixels | None:
        """Decode an image that `is_bounded`. None: it may be damaged, and a decoder process must
        decide."""
        if self.format == "JPEG":
            return self._decode_plain_jpeg()
        try:
            return self.decode()
        except BadImage:
            return None

    def decode(self) -> Pixels:
        """Decode in this process. Raises BadImage, ImageTooLarge and ImageTooExpensive."""
        try:
            rgb = picture.decode(self.data, self.format, self.width, self.height, self.max_pixels)
        except Undecodable as error:
            raise self.error(error.fault) from error.__cause__
        return as_pixels(rgb)

    def _decode_plain_jpeg(self) -> Pixels | None:
        """Decode with libjpeg-turbo directly: the same pixels as with Pillow, in a tenth of the
        time."""
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(self.data, "RGB")
        except ValueError:  # also for faults that Pillow tolerates
            return None
        if pixels.shape != (self.height, self.width, CHANNELS):
            return None
        if pixels.shape != (SIDE, SIDE, CHANNELS):
            pixels = np.array(picture.fit(Image.fromarray(pixels), self.width, self.height))
        pixels.flags.writeable = False
        return pixels

    def error(self, fault: Fault) -> Exception:
        """The exception for `fault`; its message is for the client."""
        match fault:
            case Fault.TWO_SIZES:
                return BadImage(f"This {self.format} image states two sizes. Save it again.")
            case Fault.TOO_MANY_PARTS:
                return BadImage(
                    "This JPEG image is in more pieces than any camera makes. Save it again."
                )
            case Fault.TOO_LARGE:
                return ImageTooLarge(
                    f"The {self.format} image is larger than its header says, and has more than "
                    f"the {self.max_pixels:,} pixels that are allowed. Make it smaller."
                )
            case Fault.OUT_OF_MEMORY:
                return ImageTooExpensive(
                    f"Decoding this {self.format} image takes more memory than one image may "
                    "take. Make it smaller, or save it again in an image editor."
                )
        return BadImage(
            f"This {self.format} image cannot be decoded: it is broken, cut short or of a rare "
            "kind. Open it in an image editor, save it again and send that."
        )

    def too_slow(self, seconds: float) -> Exception:
        """The exception for an image that took more than `seconds` of CPU time."""
        return ImageTooExpensive(
            f"Decoding this {self.format} image takes more than the {seconds:g} seconds of CPU "
            "time that one image may take. Make it smaller, or save it again in an image editor."
        )


def as_pixels(rgb: bytes) -> Pixels:
    """The bytes, which are SIDE x SIDE x 3, as an array."""
    return np.frombuffer(rgb, np.uint8).reshape(SIDE, SIDE, CHANNELS)


def identify(data: bytes, max_pixels: int, max_memory: int | None = None) -> EncodedImage:
    """Read the header of an image.

    Args:
        data: The encoded image.
        max_pixels: Maximum width x height.
        max_memory: Bytes that decoding one image may take. None: not bounded.

    Raises:
        BadImage: The data is not an image of a known type, ends within its header, or has no
            pixels.
        UnsupportedImageType: The image is of a type that is not served.
        ImageTooLarge: The image has more than `max_pixels` pixels, or as many as need more than
            `max_memory`.
    """
    kind, width, height = _usual_jpeg(data) or read_header(data)
    if width * height > max_pixels:
        raise too_large(width, height, max_pixels)
    image = EncodedImage(data, kind, width, height, max_pixels)
    if max_memory is not None and image.memory > max_memory:
        most = max_memory // BYTES_PER_PIXEL[image.kind]
        raise ImageTooLarge(
            f"The image has {width} x {height} pixels, and the maximum for a {image.format} of its "
            f"kind is {most:,}, because decoding takes much memory. Make it smaller, or send "
            f"another format: the network looks at {SIDE} x {SIDE}."
        )
    return image


def _usual_jpeg(data: bytes) -> Header | None:
    """The header of a JPEG as nearly every program begins it, and None for all other images."""
    usual = jpeg.USUAL.match(data)
    if usual is None:
        return None
    height, width = _SIZE.unpack(usual["size"])
    return ("JPEG", width, height) if width and height else None


def _is_plain_jpeg(data: bytes) -> bool:
    """As `jpeg.is_plain`, in less time for a JPEG as nearly every program writes it."""
    usual = jpeg.USUAL.match(data)
    if usual is not None and usual["scan"]:
        return usual["scanned"] == usual["components"][:1]
    return jpeg.is_plain(data)
