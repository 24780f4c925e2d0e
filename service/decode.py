"""From the bytes of an upload to the pixels the network sees.

Promises
    `identify` reads a header and no pixel. In microseconds it says what the upload is, refuses
    what is not served and what is too large, and tells whether `decode` may run on the event loop.

    `Upload.decode` returns uint8 (32, 32, 3): RGB, height x width x channel, C-contiguous,
    read-only. Whatever a decoder trips over becomes `BadImage`.

    A 32 x 32 RGB image comes through pixel for pixel. Of any other the network sees the middle
    square, averaged down or enlarged, of the picture as a browser shows it on a white page: EXIF
    orientation, alpha, palettes, the first frame.

Left to others
    The byte limit, the thread, HTTP.

Invariants
    Type is told from content, and only the five decoders below ever see an upload.
    The pixel limit is checked before memory is taken for pixels, and no decoder may find another
    size than the one that was checked.
    Memory: 13 bytes a pixel at most (WebP; progressive JPEG up to 8, PNG up to 4, GIF 1, other JPEG
    next to nothing), or 800 MiB at 64 megapixels. benchmarks/decode_cost.py measures it.
    CPU: 0.1 ms for 32 x 32, 15 ms (JPEG) to 0.3 s for 12 megapixels, and seconds for the worst
    that 10 MiB of malice can do.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

SIDE = 32
"""Width and height of what the network sees."""

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""Left, upper, right, lower."""

_SERVED = "JPEG, PNG, WebP, BMP or GIF"

# Up to here a decode takes about a millisecond at most, see benchmarks/decode_cost.py.
_SMALL_BYTES = 32 * 1024
_SMALL_PIXELS = 128 * 128

# Chunks that Pillow inflates, each to a megabyte at most: 30 of them take 70 ms.
_COMPRESSED_TEXT = re.compile(rb"zTXt|iTXt|iCCP")

# Generous to whatever cameras and editors write (a progressive JPEG has some ten scans), and few
# enough that a JPEG cannot take minutes.
_MAX_SEGMENTS = 1000
_MAX_SCANS = 64
_MAX_JUNK = 1024

# Pillow decodes these run by run in Python.
_MAX_RUN_LENGTH_PIXELS = 4_000_000


class BadImage(Exception):
    """Not an image, or one that cannot be decoded."""


class UnsupportedImageType(Exception):
    """An image of a type that is not served."""


class ImageTooLarge(Exception):
    """More pixels than allowed."""


@dataclass(slots=True)  # and not frozen, which would make each five times as dear
class Upload:
    """An upload whose header has been read, and none of its pixels."""

    data: bytes = field(repr=False)
    format: str
    width: int
    height: int
    max_pixels: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def is_small(self) -> bool:
        """Whether `decode` is quick enough for the event loop."""
        return (
            len(self.data) <= _SMALL_BYTES
            and self.pixels <= _SMALL_PIXELS
            and self.format != "GIF"  # whose first frame may be larger than the header says
            and not (self.format == "PNG" and _COMPRESSED_TEXT.search(self.data))
        )

    def decode(self) -> Pixels:
        """Raises BadImage, and ImageTooLarge for a GIF that is larger than its header says."""
        # Both belong to the whole process. Others set them (GluonCV allows truncated images as
        # it is imported), so we do before every decode; nobody else here decodes images.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        Image.MAX_IMAGE_PIXELS = None
        quick = self._quickly()
        if quick is not None:
            return quick
        try:
            rgb = self._decode()
        except (BadImage, ImageTooLarge):
            raise
        except Exception as error:
            # As broad as can be, on purpose: Pillow's readers let out nearly every built-in
            # exception, MemoryError and AssertionError included, and which of them a broken file
            # gets is nobody's promise. The cause is kept for the log.
            raise BadImage(
                f"This {self.format} image cannot be decoded: it is broken, cut short or of a rare "
                "kind. Open it in an image editor, save it again and send that."
            ) from error
        return np.frombuffer(rgb.tobytes(), np.uint8).reshape(SIDE, SIDE, 3)

    def _quickly(self) -> Pixels | None:
        """A small JPEG without surprises, by libjpeg-turbo itself: the very pixels that Pillow gets
        from it, in a tenth of the time. None: Pillow's to judge, whatever is the matter."""
        if self.format != "JPEG" or not self.is_small or not _is_plain_jpeg(self.data):
            return None
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(self.data, "RGB")
        except ValueError:  # also for what Pillow puts up with
            return None
        if pixels.shape != (self.height, self.width, 3):
            return None
        if pixels.shape != (SIDE, SIDE, 3):
            pixels = np.array(_fit(Image.fromarray(pixels), self.width, self.height))
        pixels.flags.writeable = False
        return pixels

    def _decode(self) -> Image.Image:
        if self.format == "JPEG":
            _refuse_endless_jpeg(self.data)
        image = _DECODERS[self.format](io.BytesIO(self.data))
        if image.size != (self.width, self.height):
            if self.format != "GIF":
                raise BadImage(f"This {self.format} image states two sizes. Save it again.")
            _refuse_too_large(*image.size, self.max_pixels)
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, in a fraction of the time and
        # averaged as well as we would. The box is what such a draft stands for, to the fraction.
        draft = image.draft(None, (_SPARE * SIDE, _SPARE * SIDE))
        width, height = draft[1][2:] if draft else image.size
        drawn = image.tile[0].extents if self.format == "GIF" and image.tile else None
        image.load()
        if self.format == "PNG":
            _scale_transparent_colour(image, depth=self.data[24])
        whole = image if drawn is None else _around(image, drawn)
        seen = _fit(whole, width, height)
        # Turned last: nothing so far depends on it, and by now it costs nothing.
        turn = _TURNS.get(_orientation(image.info))
        return seen if turn is None else seen.transpose(turn)


def identify(data: bytes, max_pixels: int) -> Upload:
    """Raises BadImage, UnsupportedImageType or ImageTooLarge."""
    signature = _SIGNATURE.match(data)
    if signature is None:
        raise BadImage(f"This is not an image of a known type. Send {_SERVED}.")
    name = str(signature.lastgroup)
    if name not in _SIZES:
        raise UnsupportedImageType(f"{name.replace('_', ' ')} is not served. Send {_SERVED}.")
    try:
        width, height = _SIZES[name](data)
    except struct.error as error:
        raise BadImage(f"This {name} image ends within its header. Send all of it.") from error
    _refuse_too_large(width, height, max_pixels)
    return Upload(data, name, width, height, max_pixels)


def decode(data: bytes, max_pixels: int) -> Pixels:
    """The whole way, for callers that have no thread to choose."""
    return identify(data, max_pixels).decode()


def _refuse_too_large(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"The image has {width} x {height} pixels, and {max_pixels:,} in all are allowed. "
            f"Make it smaller: it is looked at as {SIDE} x {SIDE}."
        )


# The header. A name that _SIZES has is served; the rest are here to be refused by name.

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


def _png_size(data: bytes) -> tuple[int, int]:
    return struct.unpack_from(">II", data, 16)


def _gif_size(data: bytes) -> tuple[int, int]:
    return struct.unpack_from("<HH", data, 6)


def _bmp_size(data: bytes) -> tuple[int, int]:
    if data[14] == 12:  # as OS/2 wrote it
        return struct.unpack_from("<HH", data, 18)
    width, height, _, compression = struct.unpack_from("<IiII", data, 18)
    if compression in (1, 2):
        _refuse_too_large(width, abs(height), _MAX_RUN_LENGTH_PIXELS)
    return width, abs(height)  # negative where the rows run from top to bottom


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return width + 1, height + 1
    if kind == b"VP8L":
        (sizes,) = struct.unpack_from("<I", data, 21)
        return (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_size(data: bytes) -> tuple[int, int]:
    if usual := _USUAL_JPEG.match(data):
        height, width = struct.unpack(">HH", usual["size"])
        return width, height
    for marker, position in itertools.islice(_jpeg_segments(data), _MAX_SEGMENTS):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 3)
            return width, height
        if marker == _START_OF_SCAN:
            break  # what follows is pixels, and may be long
    raise BadImage("This JPEG image has no frame header. Send all of it.")


_SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "JPEG": _jpeg_size,
    "PNG": _png_size,
    "WebP": _webp_size,
    "BMP": _bmp_size,
    "GIF": _gif_size,
}

# As nearly every program begins one: a JFIF header, tables, a baseline frame in grey or YCbCr; and,
# where the Huffman tables are the standard's, these and the scan.
_USUAL_JPEG = re.compile(
    rb"\xff\xd8\xff\xe0\x00\x10JFIF\x00.{9}(?:\xff\xdb\x00\x43.{65}|\xff\xdb\x00\x84.{130}){1,2}"
    rb"\xff\xc0\x00[\x0b\x11]\x08(?P<size>.{4})(?:\x01.{3}|\x03.{9})"
    rb"(?P<scan>(?:\xff\xc4\x00(?:\x1f.{29}|\xb5.{179})){2,4}\xff\xda)?",
    re.DOTALL,
)
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_BASELINE, _START_OF_SCAN, _END_OF_IMAGE = 0xC0, 0xDA, 0xD9


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Each marker, and the position of what it heads, until the image ends."""
    position, end = 2, 2 + _MAX_JUNK
    while found := _JPEG_MARKER.search(data, position, end):
        marker, position = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            return
        yield marker, position
        position += int.from_bytes(data[position : position + 2], "big")
        end = len(data) if marker == _START_OF_SCAN else position + _MAX_JUNK


def _is_plain_jpeg(data: bytes) -> bool:
    """Baseline, in grey or YCbCr by the usual rules, and nothing noted beside the pixels."""
    usual = _USUAL_JPEG.match(data)
    if usual and usual["scan"]:
        return True  # what comes after it are pixels
    if b"Exif" in data or b"http://ns.adobe.com/" in data or b"Adobe" in data:
        return False
    if usual:
        return True
    for marker, position in itertools.islice(_jpeg_segments(data), _MAX_SEGMENTS):
        if marker == _BASELINE:
            return data[position + 7 : position + 8] in (b"\1", b"\3")
        if marker == _START_OF_SCAN:
            break
    return False


def _refuse_endless_jpeg(data: bytes) -> None:
    """Each scan of a progressive JPEG visits every block, and a scan can be a few bytes."""
    markers = [marker for marker, _ in itertools.islice(_jpeg_segments(data), _MAX_SEGMENTS + 1)]
    if len(markers) > _MAX_SEGMENTS or markers.count(_START_OF_SCAN) > _MAX_SCANS:
        raise BadImage("This JPEG image is in more pieces than any camera makes. Save it again.")


# The decoders. Called by name rather than through Image.open, which would try others, warn of
# sizes we have checked, and turn a phone's multi-picture JPEG into an MPO.


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """All of EXIF would be read for a resolution nobody wants, with warnings, at any cost."""


class _WebP(WebPImageFile):
    def _get_next(self) -> tuple[bytes, int, int]:
        """One frame is all we want: the decoder's two canvases need not outlive it."""
        frame = super()._get_next()
        del self._decoder
        return frame


_DECODERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImageFile,
    "WebP": _WebP,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
}

# A picture that only claims to be an animation is shown as the picture it is.
warnings.filterwarnings("ignore", "Invalid APNG", module=r"PIL\.")


def _scale_transparent_colour(image: Image.Image, depth: int) -> None:
    """Pillow brings samples to 8 bits and leaves PNG's transparent colour at the file's depth."""
    colour = image.info.get("transparency")
    if image.mode == "L" and colour is not None:
        image.info["transparency"] = colour * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16 and colour is not None:
        image.info["transparency"] = tuple(sample >> 8 for sample in colour)


# The pixels.

# How much larger than needed an image stays until the last step: at 3 its result cannot be told
# from one long filter over every pixel.
_SPARE = 3
_TILE = 1024


def _window(width: float, height: float) -> Box:
    """The part that the network sees."""
    side = min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def _fit(image: Image.Image, width: float, height: float) -> Image.Image:
    """RGB of SIDE x SIDE from an image that stands for width x height."""
    if image.size == (SIDE, SIDE):
        return _on_white(image)
    left, upper, right, lower = _window(width, height)
    x0, y0, x1, y1 = math.floor(left), math.floor(upper), math.ceil(right), math.ceil(lower)
    # Whole pixels are averaged first, which is quick, and tile by tile, so that there is never a
    # second image of full size, whatever the colours have to be converted from.
    by_x = max(1, int((right - left) / (_SPARE * SIDE)))
    by_y = max(1, int((lower - upper) / (_SPARE * SIDE)))
    across, down = by_x * max(1, _TILE // by_x), by_y * max(1, _TILE // by_y)
    reduced = Image.new("RGB", (math.ceil((x1 - x0) / by_x), math.ceil((y1 - y0) / by_y)))
    for y, x in itertools.product(range(y0, y1, down), range(x0, x1, across)):
        tile = image.crop((x, y, min(x + across, x1), min(y + down, y1)))
        reduced.paste(_on_white(tile).reduce((by_x, by_y)), ((x - x0) // by_x, (y - y0) // by_y))
    box = ((left - x0) / by_x, (upper - y0) / by_y, (right - x0) / by_x, (lower - y0) / by_y)
    return reduced.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)


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


def _around(image: Image.Image, drawn: tuple[int, int, int, int]) -> Image.Image:
    """White paper around the part of a GIF that its first frame draws on; Pillow fills the rest
    with the palette's first colour."""
    if drawn == (0, 0, *image.size):
        return image
    paper = Image.new("RGB", image.size, "white")
    paper.paste(_on_white(image.crop(drawn)), drawn[:2])
    return paper


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled as Pillow scales 16-bit colour; its own conversion of grey clips."""
    deep = np.asarray(image)
    grey = Image.fromarray((deep >> 8).astype(np.uint8))
    if (colour := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(deep == colour, 0, 255).astype(np.uint8)))
    return grey


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
