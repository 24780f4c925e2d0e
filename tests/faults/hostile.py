"""Generates files that cost a server far more than their sender.

`FILES` has a function for each of them. Some take a second and hundreds of MiB to generate, so a
server and this module belong in different processes.
"""

from __future__ import annotations

import base64
import functools
import struct
import zlib
from collections.abc import Callable, Iterable

from PIL import Image

from tests.service import synthetic
from tests.service.synthetic import chunk, encode, flat, png

LARGEST = 10 * 2**20 - 1024
"""Maximum bytes of an upload, without the form around it."""
PIXELS = 64_000_000
SQUARE = (8000, 8000)
WEBP = (16383, 3906)
"""The widest WebP image of about `PIXELS` pixels."""
DISPOSAL = bytes.fromhex(
    "47494638396120002000800000000000ffffff21f90408000000002c00000000ffffffff0002024401003b"
)

PASSES = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
)  # fmt: skip
"""The passes of Adam7: first column and row, and steps across and down."""

Maker = Callable[[], bytes]
FILES: dict[str, Maker] = {}


def file(name: str) -> Callable[[Maker], Maker]:
    def add(make: Maker) -> Maker:
        FILES[name] = functools.cache(make)
        return FILES[name]

    return add


def _zeros(count: int) -> bytes:
    """Deflates `count` zeros without holding them in memory."""
    packer, piece = zlib.compressobj(9), bytes(2**20)
    packed = [packer.compress(piece) for _ in range(count // len(piece))]
    return b"".join([*packed, packer.compress(bytes(count % len(piece))), packer.flush()])


def _fill(piece: bytes, size: int = LARGEST - 10_000) -> bytes:
    return piece * max(1, size // len(piece))


def _flat_png(
    size: tuple[int, int], depth: int, color: int, interlaced: bool = False, before: bytes = b""
) -> bytes:
    """Generates a PNG of zeros. `before`: chunks before the pixels."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    rows = _adam7(*size, bits) if interlaced else size[1] * (1 + -(-size[0] * bits // 8))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color, 0, 0, interlaced))
    pixels = chunk(b"IDAT", _zeros(rows))
    return synthetic.PNG_SIGNATURE + header + before + pixels + chunk(b"IEND", b"")


def _adam7(width: int, height: int, bits: int) -> int:
    """Returns the bytes of all seven passes."""
    total = 0
    for x, y, across, down in PASSES:
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        total += rows * (1 + -(-columns * bits // 8))
    return total


def _dot(*chunks: bytes) -> bytes:
    """Generates a PNG of one pixel with chunks before it."""
    return png(bytes(4), 8, 2, *chunks, size=(1, 1))


def _riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _uint24(value: int) -> bytes:
    return value.to_bytes(3, "little")


def _vp8x(flags: int, size: tuple[int, int]) -> tuple[bytes, bytes]:
    return b"VP8X", bytes([flags, 0, 0, 0]) + _uint24(size[0] - 1) + _uint24(size[1] - 1)


def lossless_webp(size: tuple[int, int]) -> bytes:
    """Generates an image of one color, so that only its header is large."""
    small = bytearray(encode(flat("RGB", "red"), "WEBP", lossless=True))
    width, height = size
    (old,) = struct.unpack_from("<I", small, 21)
    struct.pack_into("<I", small, 21, old & 0xF0000000 | (height - 1) << 14 | width - 1)
    return bytes(small)


def _jpeg(size: tuple[int, int], mode: str = "RGB", **options: object) -> bytes:
    return encode(Image.new(mode, size), "JPEG", **options)


def _with_scans(jpeg: bytes, count: int) -> bytes:
    """Repeats the last scan of a progressive JPEG until there are `count` scans."""
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + scan * (count - jpeg.count(b"\xff\xda")) + jpeg[-2:]


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _after_start(jpeg: bytes, segments: Iterable[bytes]) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


# GIF.


@file("GIF, disposal 2, frame 65535 x 65535")
def gif_disposal_2() -> bytes:
    return DISPOSAL


@file("GIF, disposal 3, frame 65535 x 65535")
def gif_disposal_3() -> bytes:
    """With a transparent color, for which Pillow fills the area."""
    return DISPOSAL.replace(b"\x21\xf9\x04\x08", b"\x21\xf9\x04\x0d")


@file("GIF, canvas 1 x 1, frame of 64 megapixels")
def gif_large_frame() -> bytes:
    return synthetic.gif(frame=SQUARE, screen=(1, 1))


@file("GIF, canvas 0 x 0, frame 0 x 0")
def gif_empty() -> bytes:
    return synthetic.gif(screen=(0, 0)).replace(b"\x20\0\x20\0", bytes(4))


@file("GIF, 64 megapixels, interlaced")
def gif_interlaced() -> bytes:
    large = bytearray(synthetic.gif(frame=SQUARE, screen=SQUARE))
    large[large.index(b",", 13) + 9] |= 0x40
    return bytes(large)


@file("GIF, comment of 10 MiB")
def gif_comment() -> bytes:
    return synthetic.gif((1, 1), (1, 1), b"!\xfe" + _fill(b"\xff" + b"c" * 255) + b"\0")


@file("GIF, comments of 1 byte, 10 MiB")
def gif_comments() -> bytes:
    return synthetic.gif((1, 1), (1, 1), _fill(b"!\xfe\1c\0"))


@file("GIF, XMP of 10 MiB")
def gif_xmp() -> bytes:
    return synthetic.gif(
        (1, 1), (1, 1), b"!\xff\x0bXMP DataXMP" + _fill(b"\xff" + b"x" * 255) + b"\0"
    )


@file("GIF, 300,000 frames")
def gif_frames() -> bytes:
    one = synthetic.gif((1, 1), (1, 1))
    frame = b"!\xf9\4\x08\1\0\0\0" + one[one.index(b",", 13) : -1]
    return one[:-1] + _fill(frame) + b";"


# WebP.


@file("WebP, lossless, 16383 x 3906")
def webp_lossless() -> bytes:
    return lossless_webp(WEBP)


@file("WebP, lossless with alpha, 64 megapixels")
def webp_lossless_alpha() -> bytes:
    small = bytearray(lossless_webp(WEBP))
    small[24] |= 0x10
    return _riff(_vp8x(0x10, WEBP), (b"VP8L", bytes(small[20:])))


@file("WebP, lossy, 64 megapixels")
def webp_lossy() -> bytes:
    return encode(Image.new("RGB", WEBP), "WEBP", quality=0, method=0)


@file("WebP, animated, canvas of 64 megapixels, 1,000 frames")
def webp_animated() -> bytes:
    still = lossless_webp((1, 1))[12:]
    frame = bytes(6) + _uint24(0) + _uint24(0) + _uint24(1) + b"\0" + still
    return _riff(_vp8x(2, WEBP), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * 1000)


@file("WebP, animated, every frame of 64 megapixels")
def webp_large_frames() -> bytes:
    still = lossless_webp(WEBP)[12:]
    size = _uint24(WEBP[0] - 1) + _uint24(WEBP[1] - 1)
    frame = bytes(6) + size + _uint24(1) + b"\0" + still
    return _riff(_vp8x(2, WEBP), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * 100)


@file("WebP, unknown chunks, 10 MiB")
def webp_chunks() -> bytes:
    still = lossless_webp((1, 1))[20:]
    return _riff(_vp8x(0, (1, 1)), (b"VP8L", still), *[(b"xxxx", b"")] * (LARGEST // 9))


@file("WebP, ICC profile, EXIF and XMP, 9 MiB")
def webp_metadata() -> bytes:
    still, third = lossless_webp((1, 1))[20:], bytes(3 * 2**20)
    return _riff(
        _vp8x(0x2C, (1, 1)), (b"ICCP", third), (b"VP8L", still), (b"EXIF", third), (b"XMP ", third)
    )


# PNG.


@file("PNG, iCCP repeated, 10 MiB")
def png_profiles() -> bytes:
    return _dot(_fill(chunk(b"iCCP", b"k\0\0" + _zeros(1_040_000))))


@file("PNG, zTXt repeated, 10 MiB")
def png_texts() -> bytes:
    return _dot(_fill(chunk(b"zTXt", b"k\0\0" + _zeros(60_000_000)), 2**20))


@file("PNG, iTXt repeated, 10 MiB")
def png_international() -> bytes:
    return _dot(_fill(chunk(b"iTXt", b"k\0\1\0\0\0" + _zeros(1_000_000))))


@file("PNG, tEXt of 10 MiB at one pixel")
def png_text() -> bytes:
    return _dot(chunk(b"tEXt", b"k\0" + bytes(LARGEST - 1000)))


@file("PNG, unknown chunk of 10 MiB at one pixel")
def png_unknown() -> bytes:
    return _dot(chunk(b"prVt", bytes(LARGEST - 1000)))


@file("PNG, empty unknown chunks, 10 MiB")
def png_chunks() -> bytes:
    return _dot(_fill(chunk(b"prVt", b"")))


@file("PNG, empty pixel chunks, 10 MiB")
def png_empty_pixels() -> bytes:
    return _dot()[: -12 - 23] + _fill(chunk(b"IDAT", b"")) + chunk(b"IEND", b"")


@file("PNG, eXIf of 10 MiB")
def png_exif() -> bytes:
    return _dot(chunk(b"eXIf", b"MM\0*" + bytes(LARGEST - 1000)))


@file("PNG, hexadecimal EXIF of ImageMagick, inflated")
def png_raw_profile() -> bytes:
    text = b"\nexif\n1000000\n" + b"00\n" * 300_000
    return _dot(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text, 9)))


@file("PNG, 16-bit, Adam7, 64 megapixels")
def png_adam7() -> bytes:
    return _flat_png(SQUARE, 16, 6, interlaced=True)


@file("PNG, RGBA, 64 megapixels")
def png_rgba() -> bytes:
    return _flat_png(SQUARE, 8, 6)


@file("PNG, 16-bit gray with a transparent shade, 64 megapixels")
def png_deep_gray() -> bytes:
    return _flat_png(SQUARE, 16, 0, before=chunk(b"tRNS", b"\0\0"))


@file("PNG, palette with alpha, 64 megapixels")
def png_palette() -> bytes:
    palette = chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(256))
    return _flat_png(SQUARE, 8, 3, before=palette)


@file("PNG, 64,000,000 x 1")
def png_row() -> bytes:
    return _flat_png((PIXELS, 1), 8, 6)


@file("PNG, 1 x 64,000,000")
def png_column() -> bytes:
    return _flat_png((1, PIXELS), 8, 6)


@file("PNG, 1-bit, 1 x 64,000,000, interlaced")
def png_column_interlaced() -> bytes:
    return _flat_png((1, PIXELS), 1, 0, interlaced=True)


@file("PNG, 2 GB behind the last row")
def png_more_pixels() -> bytes:
    return synthetic.PNG_SIGNATURE + b"".join(
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)),
            chunk(b"IDAT", _zeros(2_000_000_000)),
            chunk(b"IEND", b""),
        ]
    )


@file("APNG, 50,000 frames")
def png_frames() -> bytes:
    pixels = zlib.compress(bytes(4))
    control = struct.pack(">IIIIHHBB", 1, 1, 0, 0, 1, 1, 1, 1)
    frames = b"".join(
        chunk(b"fcTL", struct.pack(">I", 2 * number + 1) + control)
        + chunk(b"fdAT", struct.pack(">I", 2 * number + 2) + pixels)
        for number in range(50_000)
    )
    first = chunk(b"fcTL", struct.pack(">I", 0) + control)
    whole = _dot(chunk(b"acTL", struct.pack(">II", 50_001, 0)), first)
    return whole[:-12] + frames + whole[-12:]


@file("PNG, width 0")
def png_no_width() -> bytes:
    return png(b"", 8, 2, size=(0, 32))


@file("PNG, height 0")
def png_no_height() -> bytes:
    return png(b"", 8, 2, size=(32, 0))


# JPEG.


@file("JPEG, progressive, 64 scans, 64 megapixels")
def jpeg_scans() -> bytes:
    return _with_scans(_jpeg(SQUARE, progressive=True), 64)


@file("JPEG, progressive gray, 64 scans, 64 megapixels")
def jpeg_gray_scans() -> bytes:
    return _with_scans(_jpeg(SQUARE, "L", progressive=True), 64)


@file("JPEG, progressive CMYK, 64 scans, 64 megapixels")
def jpeg_cmyk_scans() -> bytes:
    return _with_scans(_jpeg(SQUARE, "CMYK", progressive=True), 64)


@file("JPEG, baseline CMYK, 64 megapixels")
def jpeg_cmyk() -> bytes:
    return _jpeg(SQUARE, "CMYK")


@file("JPEG, arithmetic coding, 64 megapixels")
def jpeg_arithmetic() -> bytes:
    return _jpeg(SQUARE, subsampling=0).replace(b"\xff\xc0", b"\xff\xc9", 1)


@file("JPEG, progressive arithmetic coding, 64 scans, 64 megapixels")
def jpeg_arithmetic_scans() -> bytes:
    return jpeg_scans().replace(b"\xff\xc2", b"\xff\xca", 1)


@file("JPEG, 12 bits")
def jpeg_deep() -> bytes:
    return _jpeg((4000, 4000)).replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c", 1)


@file("JPEG, lossless process, 64 megapixels")
def jpeg_lossless() -> bytes:
    return _jpeg(SQUARE).replace(b"\xff\xc0", b"\xff\xc3", 1)


@file("JPEG, a restart at every block, 64 megapixels")
def jpeg_restarts() -> bytes:
    return _after_start(_jpeg(SQUARE), [_segment(0xDD, b"\0\1")])


@file("JPEG, baseline in 3 scans of 64 megapixels, cut to nothing")
def jpeg_no_data() -> bytes:
    large = _jpeg(SQUARE, progressive=True)
    return large[: large.index(b"\xff\xda") + 20]


@file("JPEG, 65500 x 1")
def jpeg_row() -> bytes:
    return _jpeg((65500, 1))


@file("JPEG, 1 x 65500, progressive, 64 scans")
def jpeg_column() -> bytes:
    return _with_scans(_jpeg((1, 65500), progressive=True), 64)


@file("JPEG, 65500 x 976, progressive, 64 scans")
def jpeg_wide() -> bytes:
    return _with_scans(_jpeg((65500, 976), progressive=True), 64)


@file("JPEG, EXIF in 995 segments")
def jpeg_exif() -> bytes:
    part = _segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08" + bytes(10_000))
    return _after_start(_jpeg((32, 32)), [part] * 995)


@file("JPEG, ICC profile in 255 parts")
def jpeg_profile() -> bytes:
    parts = [b"ICC_PROFILE\0" + bytes([n + 1, 255]) + bytes(40_000) for n in range(255)]
    return _after_start(_jpeg((32, 32)), [_segment(0xE2, part) for part in parts])


@file("JPEG, Photoshop blocks in 150 segments")
def jpeg_photoshop() -> bytes:
    block = b"8BIM\4\4\0\0\0\0\0\0"
    parts = [b"Photoshop 3.0\0" + block * 5000 for _ in range(150)]
    return _after_start(_jpeg((32, 32)), [_segment(0xED, part) for part in parts])


@file("JPEG, width 0")
def jpeg_no_width() -> bytes:
    return _jpeg((32, 32)).replace(b"\x08\0\x20\0\x20", b"\x08\0\x20\0\0", 1)


@file("JPEG, height 0")
def jpeg_no_height() -> bytes:
    return _jpeg((32, 32)).replace(b"\x08\0\x20\0\x20", b"\x08\0\0\0\x20", 1)


# BMP.


@file("BMP, run-length encoded, 10 MiB")
def bmp_runs() -> bytes:
    body = _fill(b"\1\1" * 2000 + b"\0\0")
    return synthetic.bmp(body, 8, 1, size=(2000, 2000), palette=synthetic.GREYS)


@file("BMP, run-length encoded, jumps, 10 MiB")
def bmp_jumps() -> bytes:
    body = _fill(b"\0\2\0\0")
    return synthetic.bmp(body, 8, 1, size=(2000, 2000), palette=synthetic.GREYS)


@file("BMP, 1-bit, 64 megapixels")
def bmp_bits() -> bytes:
    return synthetic.bmp(bytes(8_000_000), 1, size=SQUARE, palette=bytes(4) + b"\xff" * 4)


@file("BMP, 64 megapixels without a pixel")
def bmp_no_pixels() -> bytes:
    return synthetic.bmp(b"", 32, size=SQUARE)


@file("PNG, 64 megapixels without a pixel")
def png_no_pixels() -> bytes:
    return png(b"", 8, 6, size=SQUARE)


@file("BMP, width 0")
def bmp_no_width() -> bytes:
    return synthetic.bmp(bytes(3 * 32 * 32), 24, size=(0, 32))


@file("BMP, height 0")
def bmp_no_height() -> bytes:
    return synthetic.bmp(bytes(3 * 32 * 32), 24, size=(32, 0))


@file("WebP, lossy, width 0")
def webp_no_width() -> bytes:
    small = bytearray(encode(flat("RGB", "red"), "WEBP"))
    struct.pack_into("<H", small, 26, 0)
    return bytes(small)


@file("WebP, lossy, height 0")
def webp_no_height() -> bytes:
    small = bytearray(encode(flat("RGB", "red"), "WEBP"))
    struct.pack_into("<H", small, 28, 0)
    return bytes(small)


def worst() -> list[bytes]:
    """The files above with the highest cost per byte or in total."""
    return [gif_disposal_2(), webp_lossless(), webp_lossless_alpha(), jpeg_scans(), png_adam7()]


def form(images: list[bytes]) -> tuple[str, bytes]:
    """Returns a form for `/predict/batch`: its Content-Type and its body."""
    part = b'--b\r\nContent-Disposition: form-data; name="img"; filename="a"\r\n\r\n'
    body = b"".join(part + image + b"\r\n" for image in images) + b"--b--\r\n"
    return "multipart/form-data; boundary=b", body


def inference(images: list[bytes]) -> bytes:
    """Returns a JSON request of the Open Inference Protocol."""
    data = ",".join(f'"{base64.b64encode(image).decode()}"' for image in images)
    return (
        f'{{"inputs":[{{"name":"image","shape":[{len(images)}],"datatype":"BYTES","data":[{data}]}}]}}'
    ).encode()


def message(model: str, images: list[bytes]) -> bytes:
    """Returns a gRPC message of the Open Inference Protocol."""
    from service.grpc.messages import ModelInferRequest  # of an extra

    request = ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[len(images)])
    tensor.contents.bytes_contents.extend(images)
    return bytes(request.SerializeToString())
