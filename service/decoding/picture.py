"""Decodes images with Pillow into the pixels that the neural network gets.

The pixels look as in a browser that shows the image on a white page: EXIF orientation, alpha and
palette are applied. Only the first frame of an animation is used. The neural network gets the
middle square of the image, resized to 32 x 32 pixels. The pixels of a 32 x 32 RGB image do not
change.

Decoder processes run this module, so it imports no large library except Pillow. Callers pass the
type and the size of an image, which `service.decoding.image` has read from its header.

Decoding takes at most this many bytes of memory per pixel: 14 for WebP, 8 for progressive JPEG, 4
for PNG and BMP, 2 for GIF, and almost none for other JPEGs. `benchmarks/decode_cost.py`
measures these numbers. A file may state a wrong size, so the kernel limits the memory (`sandbox`)
and the server limits the CPU time (`process`).
"""

from __future__ import annotations

import io
import itertools
import math
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from enum import IntEnum

from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.decoding import jpeg

SIDE = 32
"""Width and height of the input of the neural network, in pixels."""
CHANNELS = 3
"""Number of channels of the input of the neural network: red, green and blue."""

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge of a rectangle, in pixels."""


class Fault(IntEnum):
    """Reasons why an image cannot be decoded."""

    DAMAGED = 1
    TWO_SIZES = 2
    TOO_MANY_PARTS = 3
    TOO_LARGE = 4
    OUT_OF_MEMORY = 5


class Undecodable(Exception):
    """An image cannot be decoded. `__cause__` is the exception of the decoder, if there is one."""

    def __init__(self, fault: Fault) -> None:
        """
        Args:
            fault: Reason why the image cannot be decoded.
        """
        super().__init__(fault.name)
        self.fault = fault


def decode(data: bytes, kind: str, width: int, height: int, max_pixels: int) -> bytes:
    """Decode an image and resize its middle square.

    Args:
        data: The encoded image.
        kind: Type of the image: JPEG, PNG, WebP, BMP or GIF.
        width: Width in pixels, according to the header.
        height: Height in pixels, according to the header.
        max_pixels: Maximum width x height. The check matters for a GIF, because its first frame
            may be larger than its header says.

    Returns:
        `SIDE` x `SIDE` x 3 bytes: rows of RGB pixels.

    Raises:
        Undecodable: The image is damaged or too large, or there is not enough memory.
    """
    # Other libraries also set these global variables. For example, importing GluonCV allows
    # truncated images. Therefore, the variables are set before each image. Pillow rejects images
    # with more than twice MAX_IMAGE_PIXELS.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    try:
        return _decode(data, kind, width, height, max_pixels).tobytes()
    except Undecodable:
        raise
    except MemoryError as error:
        raise Undecodable(Fault.OUT_OF_MEMORY) from error
    except Image.DecompressionBombError as error:
        raise Undecodable(Fault.TOO_LARGE) from error
    except Exception as error:
        # Pillow does not document which exceptions a damaged file causes. Nearly all built-in
        # exceptions occur.
        raise Undecodable(Fault.DAMAGED) from error


def _decode(data: bytes, kind: str, width: int, height: int, max_pixels: int) -> Image.Image:
    if kind == "JPEG" and jpeg.has_too_many_parts(data, width * height):
        raise Undecodable(Fault.TOO_MANY_PARTS)
    image = _READERS[kind](io.BytesIO(data))
    if image.size != (width, height):
        if kind != "GIF":
            raise Undecodable(Fault.TWO_SIZES)
        if image.width * image.height > max_pixels:
            raise Undecodable(Fault.TOO_LARGE)
    if 0 in image.size:
        raise Undecodable(Fault.DAMAGED)
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, which takes a fraction of the time. The
    # result is as good as the result of resizing. `draft` also returns the exact width and height
    # of the smaller image. The exact values can be up to one pixel less than the width and height
    # in whole pixels.
    draft = image.draft(None, (_SPARE * SIDE, _SPARE * SIDE))
    shown_width, shown_height = draft[1][2:] if draft else image.size
    drawn = image.tile[0].extents if kind == "GIF" and image.tile else None
    image.load()
    if kind == "PNG":
        _scale_transparent_color(image, depth=data[24])
    seen = fit(image, shown_width, shown_height, drawn)
    # The orientation is applied last, to the small result, which takes almost no time.
    turn = _TURNS.get(_orientation(image.info))
    return seen if turn is None else seen.transpose(turn)


# These readers are called directly. `Image.open` would try other readers, too. It would also open
# a JPEG with several pictures, which some phones write, as an MPO.


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Do nothing. Pillow would read all EXIF data for a resolution that is not used."""


class _WebP(WebPImageFile):
    def _get_next(self) -> tuple[bytes, int, int]:
        """Return the first frame, and free the two canvases of the decoder."""
        frame = super()._get_next()
        del self._decoder
        return frame


_READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImageFile,
    "WebP": _WebP,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
}

# Invalid animations are decoded as still images, and large images are rejected elsewhere.
warnings.filterwarnings("ignore", "Invalid APNG", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def _scale_transparent_color(image: Image.Image, depth: int) -> None:
    """Convert the transparent color of a PNG to 8 bits. Pillow has converted only the samples."""
    color = image.info.get("transparency")
    if image.mode == "L" and color is not None:
        image.info["transparency"] = color * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16 and color is not None:
        image.info["transparency"] = tuple(sample >> 8 for sample in color)


_SPARE = 3
"""Minimum size of an image before the last resizing step, as a multiple of `SIDE`. With 3, the
result looks the same as the result of a single filter over all pixels."""
_TILE = 1024


def window(width: float, height: float) -> Box:
    """Return the middle square of an image, which the neural network gets.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
    """
    side = min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def fit(
    image: Image.Image,
    width: float,
    height: float,
    drawn: tuple[int, int, int, int] | None = None,
) -> Image.Image:
    """Return the middle square of an image as RGB, resized to `SIDE` x `SIDE`.

    Args:
        image: Image of any mode.
        width: Exact width of the image in pixels. The width need not be an integer, because a JPEG
            that was decoded at a smaller size has fractions of pixels at its edges.
        height: Exact height of the image in pixels.
        drawn: Part of a GIF that its first frame covers. The rest becomes white. None: the frame
            covers the whole image.
    """
    if image.size == (SIDE, SIDE):
        return _tile(image, (0, 0, SIDE, SIDE), drawn)
    left, upper, right, lower = window(width, height)
    x0, y0, x1, y1 = math.floor(left), math.floor(upper), math.ceil(right), math.ceil(lower)
    # First, blocks of whole pixels are averaged, which is fast. The image is processed in tiles, so
    # that no second image of full size is needed for the conversion to RGB.
    by_x = max(1, int((right - left) / (_SPARE * SIDE)))
    by_y = max(1, int((lower - upper) / (_SPARE * SIDE)))
    across, down = by_x * max(1, _TILE // by_x), by_y * max(1, _TILE // by_y)
    reduced = Image.new("RGB", (math.ceil((x1 - x0) / by_x), math.ceil((y1 - y0) / by_y)))
    for y, x in itertools.product(range(y0, y1, down), range(x0, x1, across)):
        tile = _tile(image, (x, y, min(x + across, x1), min(y + down, y1)), drawn)
        reduced.paste(tile.reduce((by_x, by_y)), ((x - x0) // by_x, (y - y0) // by_y))
    box = ((left - x0) / by_x, (upper - y0) / by_y, (right - x0) / by_x, (lower - y0) / by_y)
    return reduced.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)


def _tile(
    image: Image.Image, box: tuple[int, int, int, int], drawn: tuple[int, int, int, int] | None
) -> Image.Image:
    """Return the part of `image` in `box` as RGB.

    The area outside `drawn` becomes white. Pillow has filled this area with the first palette
    color.
    """
    tile = _on_white(image.crop(box))
    if drawn is None:
        return tile
    left, upper = max(box[0], drawn[0]), max(box[1], drawn[1])
    right, lower = min(box[2], drawn[2]), min(box[3], drawn[3])
    if (left, upper, right, lower) == box:
        return tile
    paper = Image.new("RGB", tile.size, "white")
    if left < right and upper < lower:
        part = (left - box[0], upper - box[1], right - box[0], lower - box[1])
        paper.paste(tile.crop(part), part[:2])
    return paper


def _on_white(image: Image.Image) -> Image.Image:
    """Convert `image` to RGB. Transparent areas become white."""
    if image.mode == "I;16":
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image)
    return paper


_HIGH_BYTES = [value >> 8 for value in range(65_536)]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit gray to 8 bits by scaling, because Pillow's conversion would clip."""
    deep = image.convert("I")
    gray = deep.point(_HIGH_BYTES, "L")
    if (color := image.info.get("transparency")) is not None:
        opaque = [255] * 65_536
        opaque[color] = 0
        gray.putalpha(deep.point(opaque, "L"))
    return gray


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(info: Mapping[str | tuple[int, int], object]) -> int:
    """Return the orientation (1 to 8) from EXIF data, or else from XMP data. Default: 1."""
    exif, digits, xmp = (info.get(key) for key in ("exif", "Raw profile type exif", "xmp"))
    if exif is None and isinstance(digits, str):  # EXIF data in a PNG, as ImageMagick writes it
        exif = bytes.fromhex("".join(digits.split("\n")[3:]))
    if isinstance(exif, bytes) and (orientation := _exif_orientation(exif)):
        return orientation
    if isinstance(xmp, bytes) and (found := re.search(rb'tiff:Orientation(?:="|>)(\d)', xmp)):
        return int(found[1])
    return 1


def _exif_orientation(exif: bytes) -> int | None:
    """Return the orientation from the first directory of EXIF data.

    Returns None if the tag is missing or invalid. Pillow would read all tags, and warn about other
    invalid tags.
    """
    tiff = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == 0x0112:
                return value if (kind, values) == (3, 1) else None
    except struct.error:
        pass
    return None
