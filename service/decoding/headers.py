"""Reads the type and the size of images from their headers, without decoding pixels.

A header may be false. Therefore, the header only sets the limits on CPU time and memory for the
image. Other modules enforce these limits while the image is decoded.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from service.decoding import jpeg
from service.decoding.picture import SIDE
from service.errors import BadImage, ImageTooLarge, UnsupportedImageType

Header = tuple[str, int, int]
"""Kind of an image (a key of `image.BYTES_PER_PIXEL`), and its width and height in pixels."""

_SERVED = "JPEG, PNG, WebP, BMP or GIF"
_WEBP_CHUNKS = 4096
"""Number of bytes at the start of a WebP that are searched for a chunk of lossless pixels. If the
chunk is not found, the estimated CPU time is wrong by less than a factor of 3."""
_GIF_BLOCKS = 1024
"""Maximum number of blocks of a GIF that are searched for its first frame. If the frame comes
later, the size of the frame is not known before the image is decoded."""
_PNG_SAMPLES = {2: 3, 4: 2, 6: 4}
"""Number of samples per pixel by color type of a PNG. Other color types have one sample."""
_MAX_INFLATION = 1032
"""Maximum number of bytes that one byte of Deflate data expands to (RFC 1951: 258 bytes in two
bits)."""
_MAX_RUN_LENGTH_PIXELS = 4_000_000  # Pillow decodes run-length encoded BMPs slowly, in Python


def read_header(data: bytes) -> Header:
    """Return kind, width and height of an image.

    Raises:
        BadImage: The data is not an image of a known type, ends within its header, or has no
            pixels.
        UnsupportedImageType: The image is of an unsupported type.
        ImageTooLarge: The image is a run-length encoded BMP with too many pixels.
    """
    signature = _SIGNATURE.match(data)
    if signature is None:
        raise BadImage(f"The data is not an image of a known type. Send {_SERVED}.")
    name = str(signature.lastgroup)
    if (read := _READERS.get(name)) is None:
        raise UnsupportedImageType(f"{name.replace('_', ' ')} is not supported. Send {_SERVED}.")
    try:
        kind, width, height = read(data)
    except struct.error as error:
        raise BadImage(f"This {name} image ends within its header. Send the whole file.") from error
    if width * height == 0 and name != "GIF":  # the first frame of a GIF sets its size
        raise BadImage(f"This {name} image has {width} x {height} pixels. Send a larger image.")
    return kind, width, height


def too_large(width: int, height: int, max_pixels: int) -> ImageTooLarge:
    """Return the error for an image with more than `max_pixels` pixels."""
    return ImageTooLarge(
        f"The image has {width} x {height} pixels, and the maximum is {max_pixels:,} in total. "
        f"Make the image smaller: the neural network uses only {SIDE} x {SIDE} pixels."
    )


def _png_header(data: bytes) -> Header:
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    bits = depth * _PNG_SAMPLES.get(color, 1)
    _reject_without_pixels("PNG", data, height * (1 + width * bits // 8) // _MAX_INFLATION)
    is_slow = color in (2, 4, 6) or depth == 16  # 16-bit grayscale takes as long to decode as color
    return "PNG" if is_slow else "PNG palette", width, height


def _gif_header(data: bytes) -> Header:
    """Return the kind and the size of the canvas, enlarged if the first frame does not fit.

    Decoders enlarge the canvas in the same way.
    """
    width, height = struct.unpack_from("<HH", data, 6)
    if (position := _gif_first_frame(data)) is not None:
        left, upper, across, down = struct.unpack_from("<HHHH", data, position + 1)
        width, height = max(width, left + across), max(height, upper + down)
    return "GIF", width, height


def _gif_first_frame(data: bytes) -> int | None:
    """Return the position of the first image descriptor (GIF89a, section 20).

    Returns None if the descriptor is not among the first `_GIF_BLOCKS` blocks.
    """
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
    if data[14] == 12:  # the format of OS/2
        width, height = struct.unpack_from("<HH", data, 18)
        return "BMP", width, height
    width, height, planes_and_bits, compression = struct.unpack_from("<IiII", data, 18)
    if compression in (1, 2):
        if width * abs(height) > _MAX_RUN_LENGTH_PIXELS:
            raise too_large(width, abs(height), _MAX_RUN_LENGTH_PIXELS)
        return "BMP run-length", width, abs(height)
    _reject_without_pixels("BMP", data, abs(height) * width * (planes_and_bits >> 16) // 8)
    return "BMP", width, abs(height)  # a negative height means that the top row is first


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
        raise BadImage("This JPEG image has no frame header. Send the whole file.")
    width, height, has_one_scan = frame
    return "JPEG" if has_one_scan else "JPEG progressive", width, height


def _reject_without_pixels(name: str, data: bytes, size: int) -> None:
    """Reject an image if its data is shorter than `size`, the minimum length for its pixels.

    Otherwise, decoders would allocate memory for pixels that are missing. Raises BadImage.
    """
    if len(data) < size:
        raise BadImage(f"This {name} image is truncated. Send the whole file.")


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

_READERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": _jpeg_header,
    "PNG": _png_header,
    "WebP": _webp_header,
    "BMP": _bmp_header,
    "GIF": _gif_header,
}
"""Functions that read the headers of the supported types, by type."""
