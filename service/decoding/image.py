"""Images that are identified by their header, and the decoding of small ones in this process.

`identify` reads the header of an image and none of its pixels, which takes microseconds. It rejects
images of types that are not served, images without pixels, and images that are too large.

`EncodedImage.decode` decodes in this process, without limits on memory and CPU time. The event loop
calls it only where `is_bounded`: for small plain JPEGs and PNGs, whose cost
`tests/service/decoding/test_bounded.py` measures. All other images go to the decoder processes
(`service.decoding.pool`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from service.decoding import jpeg, picture, png
from service.decoding.picture import CHANNELS, SIDE, Fault, Undecodable
from service.errors import BadImage, ImageTooExpensive, ImageTooLarge, UnsupportedImageType

Pixels = npt.NDArray[np.uint8]
"""uint8 (32, 32, 3): height x width x RGB, C-contiguous, read-only."""
Header = tuple[str, int, int]
"""Kind, width and height, in pixels."""

_SERVED = "JPEG, PNG, WebP, BMP or GIF"

# Within these bounds a plain image takes about a millisecond at most: tests/service/decoding/
# test_bounded.py. The side counts too: decoders work in blocks of up to 16 x 16 pixels, so an image
# that is one pixel wide has up to 16 times as much work as its pixels.
_BOUNDED_BYTES = 32 * 1024
_BOUNDED_PIXELS = 128 * 128
_BOUNDED_SIDE = 512

_WEBP_CHUNKS = 4096
"""Number of first bytes in which a chunk of lossless pixels is searched. A wrong guess changes the
estimated time by less than a factor of 3."""

_GIF_BLOCKS = 1024
"""Blocks, and pieces of blocks, among which the first frame of a GIF is looked for: further on,
only its decoder finds it."""
_PNG_SAMPLES = {2: 3, 4: 2, 6: 4}
"""PNG's type of color -> samples per pixel, where these are several."""
_MAX_INFLATION = 1032
"""Bytes that a byte of Deflate can stand for (RFC 1951: 258 bytes in two bits)."""

# Pillow decodes run-length encoded BMPs in Python, run by run.
_MAX_RUN_LENGTH_PIXELS = 4_000_000

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
            return jpeg.is_plain(self.data)
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
    signature = _SIGNATURE.match(data)
    if signature is None:
        raise BadImage(f"This is not an image of a known type. Send {_SERVED}.")
    name = str(signature.lastgroup)
    if (read_header := _HEADERS.get(name)) is None:
        raise UnsupportedImageType(f"{name.replace('_', ' ')} is not served. Send {_SERVED}.")
    try:
        kind, width, height = read_header(data)
    except struct.error as error:
        raise BadImage(f"This {name} image ends within its header. Send all of it.") from error
    if width * height == 0 and name != "GIF":  # its first frame decides
        raise BadImage(f"This {name} image has {width} x {height} pixels. Send one with pixels.")
    _reject_too_large(width, height, max_pixels)
    image = EncodedImage(data, kind, width, height, max_pixels)
    if max_memory is not None and image.memory > max_memory:
        most = max_memory // BYTES_PER_PIXEL[image.kind]
        raise ImageTooLarge(
            f"The image has {width} x {height} pixels, and a {name} of its kind may have {most:,}, "
            "since decoding one takes much memory. Make it smaller, or send another format: it is "
            f"looked at as {SIDE} x {SIDE}."
        )
    return image


def _reject_too_large(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"The image has {width} x {height} pixels, and {max_pixels:,} in all are allowed. "
            f"Make it smaller: it is looked at as {SIDE} x {SIDE}."
        )


# The header. The names in _HEADERS are served; the others are rejected by name.

_SIGNATURE = re.compile(
    rb"""
      (?P<JPEG>\xff\xd8\xff)
    | (?P<PNG>\x89PNG\r\n\x1a\n)
    | (?P<WebP>RIFF....WEBP)
    | (?P<GIF>GIF8[79]a)
    | (?P<BMP>BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00)
    | (?P<TIFF>II[*+]\x00|MM\x00[*+])
    | (?P<AVIF>....ftypavi[fs])
    | (?P<HEIF>....ftyp(?:he[iv][cmsx]|mif1|msf1))
    | (?P<JPEG_2000>\x00\x00\x00\x0cjP\x20\x20\r\n\x87\n|\xff\x4f\xff\x51)
    | (?P<JPEG_XL>\x00\x00\x00\x0cJXL\x20\r\n\x87\n|\xff\x0a)
    | (?P<SVG>(?:\xef\xbb\xbf)?\s{0,64}<(?:svg\b|[?!].{0,1000}?<svg\b))
    | (?P<Photoshop>8BPS)
    | (?P<Windows_icon>\x00\x00[\x01\x02]\x00[^\x00]\x00)
    | (?P<Apple_icon>icns)
    | (?P<Netpbm>P[1-7fF]\s)
    | (?P<OpenEXR>v/1\x01)
    | (?P<Radiance_HDR>\#\?R)
    | (?P<DirectDraw_Surface>DDS\x20)
    | (?P<QOI>qoif)
    | (?P<PCX>\x0a[\x00-\x05]\x01[\x01-\x08])
    | (?P<SGI>\x01\xda[\x00\x01][\x01\x02])
    | (?P<FLIC>....[\x11\x12]\xaf)
    | (?P<BLP>BLP[12])
    | (?P<FITS>SIMPLE\x20\x20=)
    | (?P<XBM>\#define\x20)
    | (?P<XPM>/\*\x20XPM\x20\*/)
    | (?P<MSP>DanM|LinS)
    | (?P<PostScript>%!PS|\xc5\xd0\xd3\xc6)
    | (?P<Windows_metafile>\xd7\xcd\xc6\x9a|\x01\x00\x00\x00.{36}\x20EMF)
    | (?P<Windows_clipboard>[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00.{8}\x01\x00)
    | (?P<Targa>.(?:\x00[\x02\x03\x0a\x0b]\x00{5}|\x01[\x01\x09].{4}[\x0f\x10\x18\x20]))
    """,
    re.VERBOSE | re.DOTALL,
)


def _png_header(data: bytes) -> Header:
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    bits = depth * _PNG_SAMPLES.get(color, 1)
    _reject_without_pixels("PNG", data, height * (1 + width * bits // 8) // _MAX_INFLATION)
    return "PNG" if color in (2, 6) else "PNG palette", width, height


def _gif_header(data: bytes) -> Header:
    """The canvas, or what holds the first frame, too: decoders make the canvas so large."""
    width, height = struct.unpack_from("<HH", data, 6)
    if (position := _gif_first_frame(data)) is not None:
        left, upper, across, down = struct.unpack_from("<HHHH", data, position + 1)
        width, height = max(width, left + across), max(height, upper + down)
    return "GIF", width, height


def _gif_first_frame(data: bytes) -> int | None:
    """The position of the first image descriptor (GIF89a, section 20), if it comes soon."""
    flags = data[10] if len(data) > 10 else 0
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    left = _GIF_BLOCKS
    while left > 0:
        if data[position : position + 1] == b",":
            return position
        if data[position : position + 1] != b"!":
            return None
        position += 2
        while (length := int.from_bytes(data[position : position + 1], "big")) and left > 0:
            position += 1 + length
            left -= 1
        position += 1
        left -= 1
    return None


def _bmp_header(data: bytes) -> Header:
    if data[14] == 12:  # as OS/2 wrote it
        width, height = struct.unpack_from("<HH", data, 18)
        return "BMP", width, height
    width, height, planes_and_bits, compression = struct.unpack_from("<IiII", data, 18)
    if compression in (1, 2):
        _reject_too_large(width, abs(height), _MAX_RUN_LENGTH_PIXELS)
        return "BMP run-length", width, abs(height)
    _reject_without_pixels("BMP", data, abs(height) * width * (planes_and_bits >> 16) // 8)
    return "BMP", width, abs(height)  # negative where the rows run from top to bottom


def _webp_header(data: bytes) -> Header:
    chunk = data[12:16]
    kind = "WebP lossless" if b"VP8L" in data[12:_WEBP_CHUNKS] else "WebP"
    if chunk == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return kind, width + 1, height + 1
    if chunk == b"VP8L":
        (sizes,) = struct.unpack_from("<I", data, 21)
        return kind, (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return kind, width & 0x3FFF, height & 0x3FFF


def _jpeg_header(data: bytes) -> Header:
    if (frame := jpeg.frame(data)) is None:
        raise BadImage("This JPEG image has no frame header. Send all of it.")
    width, height, baseline = frame
    return "JPEG" if baseline else "JPEG progressive", width, height


def _reject_without_pixels(name: str, data: bytes, size: int) -> None:
    """Its pixels take `size` bytes at least. Memory for pixels that are not there is taken for
    nothing."""
    if len(data) < size:
        raise BadImage(f"This {name} image is cut short. Send all of it.")


_HEADERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": _jpeg_header,
    "PNG": _png_header,
    "WebP": _webp_header,
    "BMP": _bmp_header,
    "GIF": _gif_header,
}
