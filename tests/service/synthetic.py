"""Small odd, broken and hostile images, made in code.

Each function returns files by name: `served` decode, `unsupported` are images of other types,
`broken` are none or no longer one, `bombs` promise more than they hold and must be cheap to
refuse or to decode. The pictures are CHART wherever a format can hold it.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 32

across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
CHART: npt.NDArray[np.uint8] = np.stack(
    [across * 8, down * 8, (across + down) * 2 + 64], axis=-1
).astype(np.uint8)
"""No two pixels alike, and smooth enough for a JPEG."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode(pixels: npt.NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode: str, colour: str | float | tuple[int, ...], side: int = SIDE) -> Image.Image:
    return Image.new(mode, (side, side), colour)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def behind_header(chunk: bytes, png: bytes) -> bytes:
    return png[:33] + chunk + png[33:]


def png(
    rows: bytes,
    depth: int,
    colour_type: int,
    *chunks: bytes,
    size: tuple[int, int] = (SIDE, SIDE),
    interlaced: bool = False,
) -> bytes:
    """A PNG of any depth; `rows` are as filtered but not yet compressed."""
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, interlaced)
    before = PNG_SIGNATURE + chunk(b"IHDR", header) + b"".join(chunks)
    return before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def flat_rows(row: bytes, height: int = SIDE) -> bytes:
    return (b"\0" + row) * height


def exif(orientation: int, order: str = ">", kind: int = 3, count: int = 1) -> bytes:
    """An EXIF block with nothing but an orientation, after a tag that must be stepped over."""
    head = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(f"{order}I", 8)
    make = struct.pack(f"{order}HHI4s", 0x010F, 2, 4, b"abc\0")
    turn = struct.pack(f"{order}HHIHH", 0x0112, kind, count, orientation, 0)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", 2) + make + turn + bytes(4)


def jpeg_with(segment: bytes, marker: int, jpeg: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(segment) + 2) + segment + jpeg[2:]


def ycck() -> bytes:
    """Red ink in the form Photoshop writes: inverted, then turned to luma and chroma."""
    planes = [flat("L", 255 - value) for value in (179, 171, 1, 255)]
    plain = encode(Image.merge("CMYK", planes), "JPEG", quality=100)
    at = plain.index(b"Adobe") + 11
    return plain[:at] + b"\2" + plain[at + 1 :]


def bmp(
    body: bytes,
    bits: int,
    compression: int = 0,
    size: tuple[int, int] = (SIDE, SIDE),
    palette: bytes = b"",
) -> bytes:
    start = 54 + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII", 40, *size, 1, bits, compression, len(body), 0, 0, len(palette) // 4, 0
    )
    return struct.pack("<2sIII", b"BM", start + len(body), 0, start) + header + palette + body


GREYS = b"".join(bytes([grey, grey, grey, 0]) for grey in range(256))
REDS = b"".join(bytes([0, 0, red, 0]) for red in range(256))


def gif(
    frame: tuple[int, int] = (SIDE, SIDE),
    screen: tuple[int, int] = (SIDE, SIDE),
    before: bytes = b"",
) -> bytes:
    """Black, with blocks of your choice before the picture."""
    plain = encode(Image.new("P", frame), "GIF")
    start = 13 + (3 << (plain[10] & 7) + 1 if plain[10] & 128 else 0)
    assert plain[start : start + 1] == b","
    return plain[:6] + struct.pack("<HH", *screen) + plain[10:start] + before + plain[start:]


def animation(kind: str) -> bytes:
    later = [flat("RGB", colour) for colour in ("red", "green", "blue")]
    return encode(CHART, kind, save_all=True, append_images=later, duration=50)


def noise(kind: str, side: int = 96, **options: Any) -> bytes:
    """Incompressible, so that wherever the file is cut pixels are lost."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    image = Image.fromarray(pixels)
    return encode(image.quantize(256) if kind == "GIF" else image, kind, **options)


@functools.cache
def served() -> dict[str, bytes]:
    chart = Image.fromarray(CHART)
    clear = chart.copy()
    clear.putalpha(128)
    jpeg = encode(chart, "JPEG", quality=95)
    files = {
        "jpeg.jpg": jpeg,
        "jpeg progressive.jpg": encode(chart, "JPEG", progressive=True),
        "jpeg grey.jpg": encode(chart.convert("L"), "JPEG"),
        "jpeg cmyk.jpg": encode(chart.convert("CMYK"), "JPEG"),
        "jpeg ycck.jpg": ycck(),
        "jpeg multi-picture.jpg": animation("MPO"),
        "jpeg broken exif.jpg": jpeg_with(b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1", 0xE1, jpeg),
        "jpeg fill bytes.jpg": jpeg[:2] + b"\xff\xff\0\0" + jpeg[2:],
        "jpeg and a zip.jpg": jpeg + b"PK\3\4" + bytes(500),
        "png.png": encode(chart, "PNG"),
        "png 1-bit.png": encode(chart.convert("1"), "PNG"),
        "png grey.png": encode(chart.convert("L"), "PNG"),
        "png grey alpha.png": encode(clear.convert("LA"), "PNG"),
        "png palette.png": encode(chart.quantize(64), "PNG"),
        "png palette alpha.png": encode(clear.quantize(64), "PNG"),
        "png alpha.png": encode(clear, "PNG"),
        "png 16-bit grey.png": png(flat_rows(bytes(2 * SIDE)), 16, 0),
        "png 16-bit.png": png(flat_rows(bytes(6 * SIDE)), 16, 2),
        "png interlaced.png": png(bytes(8 * 3 * 8 * 8 + 15), 8, 2, size=(8, 8), interlaced=True),
        "png animated.png": animation("PNG"),
        "png no animation.png": png(
            flat_rows(bytes(3 * SIDE)), 8, 2, chunk(b"acTL", struct.pack(">II", 0, 0))
        ),
        "png large text.png": png(
            flat_rows(bytes(3 * SIDE)), 8, 2, chunk(b"tEXt", b"k\0" + b"v" * 100_000)
        ),
        "webp.webp": encode(chart, "WEBP"),
        "webp lossless.webp": encode(chart, "WEBP", lossless=True),
        "webp alpha.webp": encode(clear, "WEBP"),
        "webp animated.webp": animation("WEBP"),
        "bmp.bmp": encode(chart, "BMP"),
        "bmp 1-bit.bmp": encode(chart.convert("1"), "BMP"),
        "bmp palette.bmp": encode(chart.quantize(64), "BMP"),
        "bmp alpha.bmp": encode(clear, "BMP"),
        "bmp from the top.bmp": bmp(bytes(3 * SIDE * SIDE), 24, size=(SIDE, -SIDE)),
        "bmp run-length.bmp": bmp(b"\x20\x80\0\0" * SIDE + b"\0\1", 8, 1, palette=REDS),
        "gif.gif": encode(chart.quantize(64), "GIF"),
        "gif grey.gif": encode(chart.convert("L"), "GIF"),
        "gif transparent.gif": encode(chart.quantize(64), "GIF", transparency=0),
        "gif animated.gif": animation("GIF"),
        "gif larger than its screen.gif": gif(screen=(1, 1)),
        "gif without a screen.gif": gif(screen=(0, 0)),
        "gif xmp.gif": gif(before=b"!\xff\x0bXMP DataXMP" + b"\xff" + bytes(255) + b"\0"),
    }
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF"):
        for width, height in ((1, 1), (1, 300), (300, 1), (7, 5), (200, 150)):
            shape = chart.resize((width, height))
            image = shape.quantize(64) if kind == "GIF" else shape
            files[f"{kind.lower()} {width}x{height}"] = encode(image, kind)
    return files


@functools.cache
def unsupported() -> dict[str, bytes]:
    chart = Image.fromarray(CHART)
    files = {kind: encode(chart, kind) for kind in ("TIFF", "ICO", "TGA", "PPM", "PCX", "DDS")}
    return files | {
        "TIFF, big end first": b"MM\0*" + bytes(60),
        "AVIF": b"\0\0\0\x20ftypavif" + bytes(60),
        "HEIC": b"\0\0\0\x20ftypheic" + bytes(60),
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
        "JPEG XL": b"\xff\x0a" + bytes(60),
        "Photoshop": b"8BPS\0\1" + bytes(60),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "SVG with a preamble": b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>",
    }


@functools.cache
def broken() -> dict[str, bytes]:
    whole = served()
    files = {
        "nothing": b"",
        "a byte": b"\xff",
        "zeros": bytes(1000),
        "text": b"This is not an image. " * 50,
        "text that begins as a BMP does": b"BMW drives at 100 km/h, and then some more.",
        "html": b"<html><body>404 Not Found</body></html>",
        "zip": b"PK\3\4" + bytes(1000),
        "pdf": b"%PDF-1.7\n" + bytes(1000),
        "riff that is sound": b"RIFF\x24\0\0\0WAVEfmt " + bytes(100),
        "jpeg signature": b"\xff\xd8\xff",
        "png signature": PNG_SIGNATURE,
        "gif signature": b"GIF89a",
        "jpeg without a scan": whole["jpeg.jpg"].partition(b"\xff\xda")[0] + b"\xff\xd9",
        "jpeg of no height": whole["jpeg.jpg"].replace(
            struct.pack(">BHH", 8, SIDE, SIDE), struct.pack(">BHH", 8, 0, SIDE)
        ),
        "png of no width": png(b"", 8, 2, size=(0, SIDE)),
        "png without pixels": png(b"", 8, 2),
        "png of an unknown depth": png(bytes(9999), 7, 2),
        "png that changes its mind": png(
            bytes(301 * 100), 8, 2, chunk(b"IHDR", struct.pack(">IIBBBBB", 100, 100, 8, 2, 0, 0, 0))
        ),
        "png palette without colours": png(flat_rows(bytes(SIDE)), 8, 3)[:-30],
        "png transparent by name only": png(
            flat_rows(bytes(3 * SIDE)), 8, 2, chunk(b"tEXt", b"transparency\0red")
        ),
        "bmp of no height": bmp(b"", 24, size=(SIDE, 0)),
        "bmp that holds a png": bmp(whole["png.png"], 24, 5),
        "bmp run-length cut": bmp(b"\x20\x80\0\0" * 3, 8, 1, palette=GREYS),
        "gif without a frame": gif()[:13] + b";",
        "webp of an unknown kind": b"RIFF\x20\0\0\0WEBPVP9 " + bytes(40),
    }
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF"):
        data = noise(kind)
        for part in (0.05, 0.5, 0.9):
            files[f"{kind.lower()} cut at {part:.0%}"] = data[: int(len(data) * part)]
    return files


@functools.cache
def bombs() -> dict[str, bytes]:
    huge = (60_000, 60_000)
    jpeg = encode(flat("RGB", 0), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    black = flat_rows(bytes(3 * SIDE))
    swelling = zlib.compress(bytes(5_000_000), 9)
    # Every tag points at the same bytes, which a reader that copies each would multiply.
    tags = b"".join(struct.pack(">HHII", 0x8000 + tag, 1, 60_000, 8) for tag in range(4000))
    overlapping = (b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 4000) + tags).ljust(65_000, b"\0")
    header = jpeg.index(b"\xff\xc2") + 5
    return {
        "png of 3,600 megapixels": png(b"", 8, 6, size=huge),
        "png of 2^62 pixels": png(b"", 8, 2, size=(2**31 - 1, 2**31 - 1)),
        "png text": png(black, 8, 2, chunk(b"zTXt", b"k\0\0" + swelling)),
        "png international text": png(black, 8, 2, chunk(b"iTXt", b"k\0\1\0\0\0" + swelling)),
        "png colour profile": png(black, 8, 2, chunk(b"iCCP", b"k\0\0" + swelling)),
        "png pixels after the last row": png(bytes(5_000_000), 8, 2),
        "png chunks": png(black, 8, 2, chunk(b"teSt", b"") * 20_000),
        "jpeg of 4,295 megapixels": jpeg[:header] + b"\xff" * 4 + jpeg[header + 4 :],
        "jpeg scans": jpeg[:-2] + scan * 2000 + b"\xff\xd9",
        "jpeg segments": jpeg[:2] + b"\xff\xfe\0\2" * 100_000 + jpeg[2:],
        "jpeg segments behind the frame header": jpeg[: header - 5]
        + jpeg[header - 5 :].replace(b"\xff\xda", b"\xff\xfe\0\2" * 100_000 + b"\xff\xda", 1),
        "jpeg fill bytes": jpeg[:2] + b"\xff" * 1_000_000 + jpeg[2:],
        "jpeg exif": jpeg_with(overlapping, 0xE1, jpeg),
        "jpeg exif in many segments": jpeg[:2]
        + jpeg_with(overlapping, 0xE1, b"\xff\xd8")[2:] * 20
        + jpeg[2:],
        "webp of 281 terapixels": b"RIFF\x2e\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff" * 30,
        "bmp of 3,600 megapixels": bmp(b"", 24, size=huge),
        "bmp run-length": bmp(b"\0\1", 8, 1, size=(8000, 8000), palette=GREYS),
        "bmp run-length row": bmp(b"\1\1\0\0\0\1", 8, 1, size=(60_000_000, 1), palette=GREYS),
        "bmp of a negative width": bmp(bytes(3 * SIDE * SIDE), 24, size=(-SIDE, 1)),
        "gif that is a script": b"GIF89a=0;alert(1)//" + bytes(20),
        "gif of a large screen": gif(screen=(65_535, 65_535)),
        "gif of a large frame": gif(frame=(65_535, 1000), screen=(1, 1)),
        "gif comments": gif(before=b"!\xfe" + b"\1c" * 100_000 + b"\0"),
        "gif frames": gif()[:-1] + gif()[-40:-1] * 10_000 + b";",
        "webp frames": encode(
            flat("RGB", 0), "WEBP", save_all=True, append_images=[flat("RGB", 9)] * 200
        ),
    }
