"""Which pixels the network sees of an image."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile

from service.decoding import picture
from service.decoding.headers import read_header
from service.decoding.image import identify
from service.decoding.picture import SIDE, Fault, Undecodable
from service.errors import BadImage
from tests.service import synthetic
from tests.service.decoding.decoded import (
    MAX_PIXELS,
    decode,
    rendered_plainly,
)
from tests.service.synthetic import CHART, encode, flat, flat_rows, noise, png

# Filters of pytest come before the one that `service.decoding` sets.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Invalid APNG:UserWarning", "ignore:Image size:PIL.Image.DecompressionBombWarning"
)

RED, WHITE, BLACK, PINK = (255, 0, 0), (255, 255, 255), (0, 0, 0), (255, 127, 127)


GREY = (128, 128, 128)


@pytest.mark.parametrize(
    "data",
    [
        encode(CHART, "PNG"),
        encode(CHART, "BMP"),
        encode(CHART, "WEBP", lossless=True),
        encode(np.dstack([CHART, np.full((SIDE, SIDE), 255, np.uint8)]), "PNG"),
    ],
    ids=["PNG", "BMP", "WebP", "PNG with alpha"],
)
def test_a_32x32_image_reaches_the_network_pixel_for_pixel(data: bytes) -> None:
    """Nothing is resampled that has the right size."""
    assert np.array_equal(decode(data, MAX_PIXELS), CHART)


def in_png(mode: str, colour: float | tuple[int, ...]) -> bytes:
    return encode(flat(mode, colour), "PNG")


def trns(*samples: int) -> bytes:
    return synthetic.chunk(b"tRNS", b"".join(sample.to_bytes(2, "big") for sample in samples))


def palette(colour: tuple[int, int, int]) -> Image.Image:
    image = flat("P", 1)
    image.putpalette([9, 9, 9, *colour])
    return image


COLOURS: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "JPEG": (encode(flat("RGB", RED), "JPEG"), RED),
    "JPEG grey": (encode(flat("L", 128), "JPEG"), GREY),
    "JPEG CMYK": (encode(flat("CMYK", (0, 255, 255, 0)), "JPEG"), RED),
    "JPEG CMYK, black ink": (encode(flat("CMYK", (0, 0, 0, 255)), "JPEG"), BLACK),
    "JPEG YCCK": (synthetic.ycck(), RED),
    "PNG 1-bit": (encode(flat("1", 1), "PNG"), WHITE),
    "PNG grey": (encode(flat("L", 128), "PNG"), GREY),
    "PNG grey 2-bit": (png(flat_rows(b"\xaa" * 8), 2, 0), (170, 170, 170)),
    "PNG grey 4-bit": (png(flat_rows(b"\x88" * 16), 4, 0), (136, 136, 136)),
    "PNG grey 16-bit": (png(flat_rows(b"\x80\x00" * 32), 16, 0), GREY),
    "PNG grey 16-bit, dark": (png(flat_rows(b"\x00\xff" * 32), 16, 0), BLACK),
    "PNG 16-bit": (png(flat_rows(b"\xff\xff\0\0\0\0" * 32), 16, 2), RED),
    "PNG grey alpha 16-bit": (png(flat_rows(b"\x80\x00\xff\xff" * 32), 16, 4), GREY),
    "PNG alpha 16-bit": (png(flat_rows(b"\xff\xff\0\0\0\0\x80\x00" * 32), 16, 6), PINK),
    "PNG palette": (encode(palette(RED), "PNG"), RED),
    "PNG palette 1-bit": (encode(palette(RED), "PNG", bits=1), RED),
    "PNG opaque": (in_png("RGBA", (*RED, 255)), RED),
    "PNG alpha": (in_png("RGBA", (*RED, 128)), PINK),
    "PNG invisible": (in_png("RGBA", (*RED, 0)), WHITE),
    "PNG grey alpha": (in_png("LA", (0, 128)), (127, 127, 127)),
    "PNG palette, transparent": (encode(palette(RED), "PNG", transparency=1), WHITE),
    "PNG palette, other transparent": (encode(palette(RED), "PNG", transparency=0), RED),
    "PNG palette alpha": (encode(palette(RED), "PNG", transparency=b"\xff\x80"), PINK),
    "PNG 1-bit, transparent": (png(flat_rows(b"\xff" * 4), 1, 0, trns(1)), WHITE),
    "PNG 1-bit, other transparent": (png(flat_rows(b"\0" * 4), 1, 0, trns(1)), BLACK),
    "PNG grey 2-bit, transparent": (png(flat_rows(b"\x55" * 8), 2, 0, trns(1)), WHITE),
    "PNG grey 4-bit, transparent": (png(flat_rows(b"\x33" * 16), 4, 0, trns(3)), WHITE),
    "PNG grey 4-bit, other transparent": (
        png(flat_rows(b"\x33" * 16), 4, 0, trns(4)),
        (51, 51, 51),
    ),
    "PNG grey, transparent": (png(flat_rows(b"\x33" * 32), 8, 0, trns(0x33)), WHITE),
    "PNG grey 16-bit, transparent": (png(flat_rows(b"\x12\x34" * 32), 16, 0, trns(0x1234)), WHITE),
    "PNG grey 16-bit, other transparent": (
        png(flat_rows(b"\x12\x34" * 32), 16, 0, trns(0x1235)),
        (18, 18, 18),
    ),
    "PNG transparent": (png(flat_rows(b"\xff\0\0" * 32), 8, 2, trns(255, 0, 0)), WHITE),
    "PNG other transparent": (png(flat_rows(b"\xff\0\0" * 32), 8, 2, trns(255, 0, 1)), RED),
    "PNG 16-bit, transparent": (
        png(flat_rows(b"\xff\xff\x12\x34\0\0" * 32), 16, 2, trns(65535, 0x1234, 0)),
        WHITE,
    ),
    "WebP": (encode(flat("RGB", RED), "WEBP", lossless=True), RED),
    "WebP alpha": (encode(flat("RGBA", (*RED, 128)), "WEBP", lossless=True), PINK),
    "BMP 1-bit": (encode(flat("1", 1), "BMP"), WHITE),
    "BMP grey": (encode(flat("L", 128), "BMP"), GREY),
    "BMP palette": (encode(palette(RED), "BMP"), RED),
    "BMP fourth byte unused": (encode(flat("RGBA", (*RED, 128)), "BMP"), RED),
    "BMP 16-bit": (synthetic.bmp(b"\x00\x7c" * SIDE * SIDE, 16), RED),
    "BMP run-length": (
        synthetic.bmp(b"\x20\xff\0\0" * SIDE + b"\0\1", 8, 1, palette=synthetic.REDS),
        RED,
    ),
    "GIF": (encode(palette(RED), "GIF"), RED),
    "GIF transparent": (encode(palette(RED), "GIF", transparency=1), WHITE),
    "GIF grey": (encode(flat("L", 128), "GIF"), GREY),
}


@pytest.mark.parametrize(("data", "colour"), COLOURS.values(), ids=COLOURS.keys())
def test_colours_come_out_right_in_every_mode(data: bytes, colour: tuple[int, int, int]) -> None:
    """Depths are scaled and not clipped, and what is transparent shows white paper."""
    assert np.abs(decode(data, MAX_PIXELS).astype(int) - colour).max() <= 2


def test_around_a_gif_that_does_not_fill_its_screen_is_white_paper() -> None:
    """As a browser shows it, whatever the first colour of the palette is."""
    pixels = decode(synthetic.gif(frame=(SIDE // 2, SIDE)), MAX_PIXELS)

    assert not pixels[:, : SIDE // 2].any()
    assert (pixels[:, SIDE // 2 :] == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "MPO"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    """And a phone's multi-picture file is the JPEG it begins with."""
    frames = [flat("RGB", colour) for colour in ("red", "green", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])

    assert np.abs(decode(data, MAX_PIXELS).astype(int) - RED).max() <= 2
    assert identify(data, MAX_PIXELS).format == {"WEBP": "WebP", "MPO": "JPEG"}.get(kind, kind)


Turn = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]


# What a viewer does to the stored rows and columns, by the definition of the tag.
TURNS: dict[int, Turn] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("JPEG", {"quality": 100, "subsampling": 0}, 4),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
    ],
)
def test_exif_orientation_puts_every_pixel_in_its_place(
    kind: str, options: dict[str, Any], error: int, orientation: int, order: str
) -> None:
    data = encode(CHART, kind, exif=synthetic.exif(orientation, order), **options)

    difference = decode(data, MAX_PIXELS).astype(int) - TURNS[orientation](CHART)

    assert np.abs(difference).max() <= error


@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_and_crop_agree_on_what_is_the_middle(orientation: int) -> None:
    """A photo twice as wide as high, its middle square the chart."""
    wide = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    wide[:, SIDE // 2 : SIDE // 2 + SIDE] = CHART

    pixels = decode(encode(wide, "PNG", exif=synthetic.exif(orientation)), MAX_PIXELS)

    assert np.array_equal(pixels, TURNS[orientation](CHART))


@pytest.mark.parametrize(
    "exif",
    [
        synthetic.exif(0),
        synthetic.exif(9),
        synthetic.exif(65535),
        synthetic.exif(6, kind=2),
        synthetic.exif(6, count=2),
        synthetic.exif(6)[:-12],
        synthetic.exif(6)[:12],
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0what is this",
        b"Exif\0\0",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_makes_no_sense_is_as_none(kind: str, exif: bytes) -> None:
    """The picture is good; only its note of which side is up is not."""
    plain, noted = encode(CHART, kind), encode(CHART, kind, exif=exif)

    assert np.array_equal(decode(noted, MAX_PIXELS), decode(plain, MAX_PIXELS))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_xmp_tells_the_orientation_where_exif_does_not(kind: str) -> None:
    """Some editors keep it there only."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    plain = encode(CHART, kind)
    if kind == "PNG":
        chunk = synthetic.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
        noted = synthetic.behind_header(chunk, plain)
    else:
        noted = encode(CHART, kind, xmp=xmp)

    assert np.array_equal(decode(noted, MAX_PIXELS), decode(plain, MAX_PIXELS)[::-1, ::-1])


def test_imagemagick_keeps_exif_in_a_text_of_hexadecimal_digits() -> None:
    """Its PNGs did so before the format had a place for it."""
    block = synthetic.exif(3)
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    chunk = synthetic.chunk(b"tEXt", b"Raw profile type exif\0" + text)
    data = synthetic.behind_header(chunk, encode(CHART, "PNG"))

    assert np.array_equal(decode(data, MAX_PIXELS), CHART[::-1, ::-1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("side", [64, 100, 255, 640, 1111])
def test_shrinking_averages_what_it_cannot_show(kind: str, side: int) -> None:
    """A fine checkerboard comes out grey, neither black nor white nor striped."""
    board = (np.indices((side, side)).sum(axis=0) % 2 * 255).astype(np.uint8)
    lossless: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}
    data = encode(board, kind, **lossless.get(kind, {}))

    pixels = decode(data, MAX_PIXELS).astype(int)

    assert np.abs(pixels - 127).max() <= 10
    assert abs(pixels.mean() - 127) < 1.5


@pytest.mark.parametrize(
    "size",
    [(33, 32), (90, 41), (129, 128), (1024, 1025), (1700, 1300), (1300, 1700), (5000, 64)],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_quick_way_shows_what_the_plain_way_shows(
    kind: str, size: tuple[int, int], tmp_path: pathlib.Path
) -> None:
    """Draft, tiles and averages leave neither seams nor shifts."""
    path = tmp_path / "picture"
    coarse = np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    picture.save(path, kind, **({"compress_level": 1} if kind == "PNG" else {}))

    difference = decode(path.read_bytes(), MAX_PIXELS).astype(int) - rendered_plainly(path)

    assert np.abs(difference).max() <= 6
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.7


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (31, 31), (5, 2000)])
def test_small_images_are_enlarged(size: tuple[int, int]) -> None:
    """However few pixels there are, they fill the frame."""
    data = encode(Image.new("RGB", size, RED), "PNG")

    assert (decode(data, MAX_PIXELS) == RED).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_truncated_images_are_refused_whatever_others_allow(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some libraries allow them for the whole process as they are imported."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = noise(kind)

    for part in (0.3, 0.6, 0.95):
        with pytest.raises(BadImage):
            decode(data[: int(len(data) * part)], MAX_PIXELS)


@pytest.mark.parametrize(
    ("data", "kind", "size", "fault"),
    [
        (encode(CHART, "PNG")[:-40], "PNG", (32, 32), Fault.DAMAGED),
        (encode(CHART, "PNG"), "JPEG", (32, 32), Fault.DAMAGED),
        (encode(CHART, "PNG"), "PNG", (31, 32), Fault.TWO_SIZES),
        (encode(CHART, "JPEG"), "JPEG", (32, 64), Fault.TWO_SIZES),
        (synthetic.gif(screen=(1, 1)), "GIF", (1, 1), Fault.TOO_LARGE),
        (synthetic.bombs()["jpeg scans"], "JPEG", None, Fault.TOO_MANY_PARTS),
    ],
    ids=["truncated", "other type", "PNG size", "JPEG size", "GIF frame", "JPEG scans"],
)
def test_decode_says_why_an_image_cannot_be_decoded(
    data: bytes, kind: str, size: tuple[int, int] | None, fault: Fault
) -> None:
    """The fault is one that the server has a message for; the GIF's frame has 1,024 pixels."""
    width, height = size or read_header(data)[1:]
    max_pixels = 1023 if kind == "GIF" else MAX_PIXELS
    with pytest.raises(Undecodable) as caught:
        picture.decode(data, kind, width, height, max_pixels)
    assert caught.value.fault == fault


def test_decode_returns_rows_of_rgb() -> None:
    """The result is 32 x 32 x 3 bytes, and a 32 x 32 image is returned as it is."""
    rgb = picture.decode(encode(CHART, "PNG"), "PNG", 32, 32, MAX_PIXELS)
    assert type(rgb) is bytes and rgb == CHART.tobytes()
