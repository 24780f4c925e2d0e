"""Decodes images with Pillow into the pixels that the network sees.

The network sees the middle square of the image as a browser shows it on a white page (EXIF
orientation, alpha, palettes, the first frame), averaged down or enlarged to 32 x 32. The pixels of
a 32 x 32 RGB image do not change.

This runs in the decoder processes, so it imports Pillow and nothing larger. The caller passes the
type and size of the image (`service.decoding.image`), which has read its header.

Memory, in bytes per pixel at most: WebP 14, progressive JPEG 8, PNG and BMP 4, GIF 2; other JPEGs
next to nothing. `benchmarks/decode_cost.py` measures it. A file may state a wrong size, so
memory is limited by the kernel (`sandbox`) and CPU time by the server (`process`).
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
"""Width and height of what the network sees, in pixels."""
CHANNELS = 3

Box = tuple[float, float, float, float]
"""Left, upper, right, lower."""


class Fault(IntEnum):
    """Why an image could not be decoded."""

    DAMAGED = 1
    TWO_SIZES = 2
    TOO_MANY_PARTS = 3
    TOO_LARGE = 4
    OUT_OF_MEMORY = 5


class Undecodable(Exception):
    """The image cannot be decoded; `fault` says why, and `__cause__` what the decoder raised."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.name)
        self.fault = fault


def decode(data: bytes, kind: str, width: int, height: int, max_pixels: int) -> bytes:
    """Decode an image and shrink or enlarge its middle square.

    Args:
        data: The encoded image.
        kind: JPEG, PNG, WebP, BMP or GIF.
        width: Width in pixels, according to the header.
        height: Height in pixels, according to the header.
        max_pixels: Maximum width x height of a GIF, whose first frame may be larger than its
            header says.

    Returns:
        SIDE x SIDE x 3 bytes: rows of RGB pixels.

    Raises:
        Undecodable: The image is damaged, too large, or takes more memory than there is.
    """
    # Both belong to the whole process, and other libraries set them (GluonCV allows truncated
    # images when it is imported), so they are set before each image. Pillow warns of an image that
    # is larger than the second, and rejects one that is twice as large.
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
        # Pillow's readers let out nearly every built-in exception, and which of them a damaged
        # file gets is not documented.
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
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, in a fraction of the time and
    # averaged as well as we would. The box is what such a draft stands for, to the fraction.
    draft = image.draft(None, (_SPARE * SIDE, _SPARE * SIDE))
    shown_width, shown_height = draft[1][2:] if draft else image.size
    drawn = image.tile[0].extents if kind == "GIF" and image.tile else None
    image.load()
    if kind == "PNG":
        _scale_transparent_color(image, depth=data[24])
    seen = fit(image, shown_width, shown_height, drawn)
    # Turned last: nothing so far depends on it, and by now it costs nothing.
    turn = _TURNS.get(_orientation(image.info))
    return seen if turn is None else seen.transpose(turn)


# The readers. Called by name rather than through Image.open, which would try others, and would
# turn a phone's multi-picture JPEG into an MPO.


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """All of EXIF would be read for a resolution that is not used, at any cost."""


class _WebP(WebPImageFile):
    def _get_next(self) -> tuple[bytes, int, int]:
        """Frees the decoder's two canvases: only the first frame is wanted."""
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

# A picture that only claims to be an animation is shown as the picture it is.
warnings.filterwarnings("ignore", "Invalid APNG", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def _scale_transparent_color(image: Image.Image, depth: int) -> None:
    """Pillow brings samples to 8 bits and leaves PNG's transparent color at the file's depth."""
    color = image.info.get("transparency")
    if image.mode == "L" and color is not None:
        image.info["transparency"] = color * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16 and color is not None:
        image.info["transparency"] = tuple(sample >> 8 for sample in color)


# The pixels.

# How much larger than needed an image stays until the last step: at 3 its result cannot be told
# from one long filter over every pixel.
_SPARE = 3
_TILE = 1024


def window(width: float, height: float) -> Box:
    """The middle square, which is the part that the network sees."""
    side = min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def fit(
    image: Image.Image,
    width: float,
    height: float,
    drawn: tuple[int, int, int, int] | None = None,
) -> Image.Image:
    """RGB of SIDE x SIDE from an image that stands for width x height pixels.

    Args:
        image: Of any mode. A draft of a JPEG is smaller than what it stands for.
        width: Of what it stands for.
        height: Of what it stands for.
        drawn: The part that a GIF's first frame draws on; the rest is shown white. None: all.
    """
    if image.size == (SIDE, SIDE):
        return _tile(image, (0, 0, SIDE, SIDE), drawn)
    left, upper, right, lower = window(width, height)
    x0, y0, x1, y1 = math.floor(left), math.floor(upper), math.ceil(right), math.ceil(lower)
    # Whole pixels are averaged first, which is quick, and tile by tile, so that there is never a
    # second image of full size, whatever the colors have to be converted from.
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
    """The part of `image` in `box` as RGB, white where nothing is `drawn`: Pillow fills that with
    the palette's first color."""
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
    """RGB, on white paper where it is transparent."""
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
    """16-bit gray scaled as Pillow scales 16-bit color; its own conversion of gray clips."""
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
    """From EXIF, or from XMP where EXIF has none."""
    exif, digits, xmp = (info.get(key) for key in ("exif", "Raw profile type exif", "xmp"))
    if exif is None and isinstance(digits, str):  # ImageMagick's, in a PNG
        exif = bytes.fromhex("".join(digits.split("\n")[3:]))
    if isinstance(exif, bytes) and (orientation := _exif_orientation(exif)):
        return orientation
    if isinstance(xmp, bytes) and (found := re.search(rb'tiff:Orientation(?:="|>)(\d)', xmp)):
        return int(found[1])
    return 1


def _exif_orientation(exif: bytes) -> int | None:
    """The tag in the first directory; None where it is missing or not as it should be.

    Pillow would read every tag there is for it, and warn of what is odd about the others.
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
