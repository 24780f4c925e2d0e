"""Identifies images by their headers, and decodes small images in this process.

`identify` reads only the header of an image, which takes microseconds. `identify` rejects images of
unsupported types, images without pixels, and images that are too large.

`EncodedImage.decode_here` decodes in this process, without limits on memory and CPU time. The event
loop calls this method only for small and plain images, for which decoding takes about a millisecond
at most (`EncodedImage.is_bounded`). All other images are sent to the decoder processes
(`service.decoding.pool`).
"""

from __future__ import annotations

import re
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
"""Read-only, C-contiguous uint8 array of shape (32, 32, 3): height x width x RGB."""

# Decoding a plain image within these limits takes about a millisecond at most, as
# tests/service/decoding/test_bounded.py checks. The limit on the side is necessary because decoders
# work in blocks of up to 16 x 16 pixels. An image that is one pixel wide takes up to 16 times as
# long as a square image with the same number of pixels.
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
"""Maximum memory that decoding takes, in bytes per pixel, if the header is correct, by kind."""

COPIES = 3
"""Number of copies of an encoded image in a decoder process: the data, the copy in a file object,
and the copy that the decoding library makes."""


@dataclass(slots=True)  # a frozen class would take five times as long to create
class EncodedImage:
    """An encoded image, and the contents of its header."""

    data: bytes = field(repr=False)
    """Encoded image."""
    kind: str
    """Format and variant of the image, which determine the cost. A key of `BYTES_PER_PIXEL`."""
    width: int
    """Width in pixels, according to the header."""
    height: int
    """Height in pixels, according to the header."""
    max_pixels: int
    """Maximum number of pixels that the image may have."""
    is_usual_jpeg: bool = False
    """Whether the image begins like most baseline JPEGs (`jpeg.USUAL`)."""

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def format(self) -> str:
        """Format of the image: JPEG, PNG, WebP, BMP or GIF."""
        return self.kind.partition(" ")[0]

    @property
    def memory(self) -> int:
        """Maximum number of bytes of memory that decoding takes, if the header is correct."""
        return self.pixels * BYTES_PER_PIXEL[self.kind] + COPIES * len(self.data)

    @property
    def is_bounded(self) -> bool:
        """Whether decoding the image takes about a millisecond at most, even if it is malicious.

        If True, `decode_here` may run on the event loop.
        """
        if len(self.data) > _BOUNDED_BYTES or self.pixels > _BOUNDED_PIXELS:
            return False
        if max(self.width, self.height) > _BOUNDED_SIDE:
            return False
        if self.kind == "JPEG":
            return self.is_usual_jpeg or jpeg.is_plain(self.data)
        return self.format == "PNG" and png.is_plain(self.data)

    def decode_here(self) -> Pixels | None:
        """Decode the image in this process. `is_bounded` must be True.

        Returns None if the image may be damaged. A decoder process must then decode the image.
        """
        if self.format == "JPEG":
            return self._decode_plain_jpeg()
        try:
            return self.decode()
        except BadImage:
            return None

    def decode(self) -> Pixels:
        """Decode the image in this process, without limits on CPU time and memory.

        Raises:
            BadImage: The image is damaged.
            ImageTooLarge: The image has more pixels than its header says, and more than are
                allowed.
            ImageTooExpensive: There is not enough memory.
        """
        try:
            rgb = picture.decode(self.data, self.format, self.width, self.height, self.max_pixels)
        except Undecodable as error:
            raise self.error(error.fault) from error.__cause__
        return as_pixels(rgb)

    def _decode_plain_jpeg(self) -> Pixels | None:
        """Decode with libjpeg-turbo directly, which takes a tenth of the time that Pillow takes.

        Both return the same pixels. Returns None if the image may be damaged.
        """
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(self.data, "RGB")
        except ValueError:  # Pillow tolerates some of these faults
            return None
        if pixels.shape != (self.height, self.width, CHANNELS):
            return None
        if pixels.shape != (SIDE, SIDE, CHANNELS):
            pixels = np.array(picture.fit(Image.fromarray(pixels), self.width, self.height))
        pixels.flags.writeable = False
        return pixels

    def error(self, fault: Fault) -> Exception:
        """Return the exception for `fault`, with a message for the client."""
        match fault:
            case Fault.TWO_SIZES:
                return BadImage(
                    f"The data of this {self.format} image contains two different image sizes. "
                    "Save it again in an image editor."
                )
            case Fault.TOO_MANY_PARTS:
                return BadImage(
                    "This JPEG image has more segments or scans than are allowed. Save it again in "
                    "an image editor."
                )
            case Fault.TOO_LARGE:
                return ImageTooLarge(
                    f"The {self.format} image is larger than its header says and has more than "
                    f"the {self.max_pixels:,} pixels that are allowed. Make the image smaller."
                )
            case Fault.OUT_OF_MEMORY:
                return ImageTooExpensive(
                    f"Decoding this {self.format} image takes more memory than one image may "
                    "take. Make the image smaller, or save it again in an image editor."
                )
        return BadImage(
            f"This {self.format} image cannot be decoded: it is damaged, truncated or of an "
            "unsupported variant. Save it again in an image editor."
        )

    def too_slow(self, seconds: float) -> Exception:
        """Return the exception for an image that took more than `seconds` of CPU time."""
        return ImageTooExpensive(
            f"Decoding this {self.format} image takes more than the {seconds:g} seconds of CPU "
            "time that one image may take. Make the image smaller, or save it again in an image "
            "editor."
        )


def as_pixels(rgb: bytes) -> Pixels:
    """Return `SIDE` x `SIDE` x 3 bytes of RGB as an array."""
    return np.frombuffer(rgb, np.uint8).reshape(SIDE, SIDE, CHANNELS)


def identify(data: bytes, max_pixels: int, max_memory: int | None = None) -> EncodedImage:
    """Read the header of an image.

    Args:
        data: The encoded image.
        max_pixels: Maximum width x height.
        max_memory: Maximum number of bytes of memory that decoding may take. None: no limit.

    Raises:
        BadImage: The data is not an image of a known type, ends within its header, or has no
            pixels.
        UnsupportedImageType: The image is of an unsupported type.
        ImageTooLarge: The image has more than `max_pixels` pixels, or decoding would take more than
            `max_memory`.
    """
    usual = jpeg.USUAL.match(data)
    kind, width, height = _usual_header(usual) or read_header(data)
    if width * height > max_pixels:
        raise too_large(width, height, max_pixels)
    image = EncodedImage(data, kind, width, height, max_pixels, usual is not None)
    if max_memory is not None and image.memory > max_memory:
        most = max_memory // BYTES_PER_PIXEL[image.kind]
        raise ImageTooLarge(
            f"The image has {width} x {height} pixels, and the maximum for this kind of "
            f"{image.format} is {most:,} in total, because decoding takes much memory. Make the "
            f"image smaller: the neural network uses only {SIDE} x {SIDE} pixels."
        )
    return image


def _usual_header(usual: re.Match[bytes] | None) -> Header | None:
    """Return the header of a JPEG that begins like most JPEGs. Returns None for all other
    images."""
    if usual is None:
        return None
    height, width = _SIZE.unpack(usual["size"])
    return ("JPEG", width, height) if width and height else None
