"""Which images are rejected and how, and which pixels come of the others."""

from __future__ import annotations

import contextlib
import pathlib
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from service.decoding.image import Pixels, identify
from service.decoding.picture import SIDE
from service.errors import BadImage, ImageTooExpensive, ImageTooLarge, UnsupportedImageType
from tests.service import synthetic
from tests.service.synthetic import CHART, encode, flat, flat_rows, noise, png

MAX_PIXELS = 64_000_000
REFUSALS = (BadImage, UnsupportedImageType, ImageTooLarge, ImageTooExpensive)

# pytest's own filters come before the one that `service.decoding` sets.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Invalid APNG:UserWarning", "ignore:Image size:PIL.Image.DecompressionBombWarning"
)


def by_name(files: dict[str, bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("data", files.values(), ids=files.keys())


def is_what_was_promised(pixels: npt.NDArray[Any]) -> bool:
    return (
        pixels.shape == (SIDE, SIDE, 3)
        and pixels.dtype == np.uint8
        and pixels.flags.c_contiguous
        and not pixels.flags.writeable
    )


def decode(data: bytes, max_pixels: int) -> Pixels:
    """Header and pixels, in this process."""
    return identify(data, max_pixels).decode()


def is_answered(data: bytes, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether what comes is an array as promised, or a refusal with a reason."""
    try:
        pixels = decode(data, max_pixels)
    except REFUSALS as refusal:
        return str(refusal) != ""
    return is_what_was_promised(pixels)


def rendered_plainly(path: pathlib.Path) -> npt.NDArray[np.uint8]:
    """The same picture by the shortest way, which costs more: every pixel, one filter."""
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")
        picture = ImageOps.exif_transpose(image).convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture)
    return np.asarray(ImageOps.fit(paper.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC))


# What it is, from the header alone.


@pytest.mark.parametrize(
    ("kind", "name"),
    [("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "WebP"), ("BMP", "BMP"), ("GIF", "GIF")],
)
@pytest.mark.parametrize("size", [(1, 1), (15, 15), (70, 3), (3, 70)])
def test_type_and_size_are_known_before_any_pixel_is_decoded(
    kind: str, name: str, size: tuple[int, int]
) -> None:
    """The header is enough: a file cut behind it is told just as well, unless its length alone
    says that it is cut."""
    data = encode(Image.new("P" if kind == "GIF" else "RGB", size), kind)

    for upload in identify(data, MAX_PIXELS), identify(data[:700], MAX_PIXELS):
        assert (upload.format, upload.width, upload.height) == (name, *size)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_a_file_too_short_for_its_pixels_is_rejected_by_its_header(kind: str) -> None:
    """No memory is taken for pixels that cannot be there: in a BMP each has its bytes, and in a PNG
    a byte stands for 1,032 at most."""
    data = encode(Image.new("RGB", (4000, 4000)), kind)

    assert identify(data, MAX_PIXELS).pixels == 16_000_000
    with pytest.raises(BadImage, match="truncated"):
        identify(data[:700], MAX_PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_the_smallest_files_are_long_enough_for_their_pixels(mode: str) -> None:
    """What compresses best is not rejected for its length."""
    for kind in ("PNG",) if mode in ("RGBA", "I;16") else ("PNG", "BMP"):
        for size in (1, 1), (3, 5), (2000, 3000):
            data = encode(Image.new(mode, size), kind)
            assert identify(data, MAX_PIXELS).pixels == size[0] * size[1]


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_every_layout_of_webp_tells_its_size(mode: str, lossless: bool) -> None:
    """Simple, lossless and extended files keep it in three different ways."""
    data = encode(Image.new(mode, (300, 200), 9), "WEBP", lossless=lossless)

    assert (identify(data, MAX_PIXELS).width, identify(data, MAX_PIXELS).height) == (300, 200)


@by_name(synthetic.unsupported())
def test_other_image_types_are_named_and_refused(data: bytes) -> None:
    """The message says what is served."""
    with pytest.raises(UnsupportedImageType, match="JPEG, PNG, WebP, BMP or GIF"):
        identify(data, MAX_PIXELS)


@by_name(synthetic.broken())
def test_what_is_no_image_or_a_broken_one_is_refused(data: bytes) -> None:
    """And the message says what to do."""
    with pytest.raises(BadImage, match=r"Send|Save|save"):
        decode(data, MAX_PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_the_pixel_limit_is_inclusive(kind: str) -> None:
    """One more is told before decoding, with the numbers."""
    data = encode(Image.new("P" if kind == "GIF" else "RGB", (40, 25)), kind)

    assert is_what_was_promised(decode(data, max_pixels=1000))
    with pytest.raises(ImageTooLarge, match=r"40 x 25 .* 999 "):
        identify(data, max_pixels=999)


def test_a_gif_that_outgrows_its_screen_meets_the_same_limit() -> None:
    """Its header promises one pixel, its frame brings 1,024: known without decoding, unless the
    frame comes late."""
    data = synthetic.gif(screen=(1, 1))
    late = synthetic.gif(screen=(1, 1), before=600 * b"!\xfe\x01x\x00")

    assert identify(data, MAX_PIXELS).pixels == 1024
    assert identify(late, MAX_PIXELS).pixels == 1
    for file in data, late:
        assert is_what_was_promised(decode(file, max_pixels=1024))
    with pytest.raises(ImageTooLarge, match="32 x 32"):
        identify(data, max_pixels=1023)
    with pytest.raises(ImageTooLarge, match="larger than its header says"):
        decode(late, max_pixels=1023)


@pytest.mark.parametrize("before", [b"", 5 * b"!\xfe\x03abc\x02de\x00", b"!\xff\x0b" + bytes(11)])
def test_the_first_frame_of_a_gif_is_found_behind_extensions(before: bytes) -> None:
    """Comments and applications' blocks, of several pieces."""
    if before.startswith(b"!\xff"):
        before += b"\x00"
    assert identify(synthetic.gif(screen=(1, 1), before=before), MAX_PIXELS).pixels == 1024


@given(st.binary(max_size=300))
def test_the_first_frame_of_a_gif_is_looked_for_within_bounds(rest: bytes) -> None:
    """Any bytes: a header, or a rejection."""
    with contextlib.suppress(*REFUSALS):
        identify(b"GIF89a" + rest, MAX_PIXELS)


def test_around_a_gif_that_does_not_fill_its_screen_is_white_paper() -> None:
    """As a browser shows it, whatever the first colour of the palette is."""
    pixels = decode(synthetic.gif(frame=(SIDE // 2, SIDE)), MAX_PIXELS)

    assert not pixels[:, : SIDE // 2].any()
    assert (pixels[:, SIDE // 2 :] == 255).all()


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_what_a_png_says_beside_its_pixels_may_take_long(kind: bytes) -> None:
    """A few kilobytes inflate to megabytes: not on the event loop."""
    png = encode(CHART, "PNG")
    text = b"note\0\0" + zlib.compress(bytes(1 << 20))
    chunk = struct.pack(">I", len(text)) + kind + text
    data = png[:33] + chunk + struct.pack(">I", zlib.crc32(kind + text)) + png[33:]

    assert identify(png, MAX_PIXELS).is_bounded
    assert not identify(data, MAX_PIXELS).is_bounded


def test_a_jpeg_whose_pixels_come_first_is_not_searched_for_its_size() -> None:
    """Ten megabytes of 0xff would keep the event loop for a tenth of a second."""
    data = b"\xff\xd8\xff\xda\x00\x02" + b"\xff" * 20_000_000

    seconds = []
    for _ in range(5):
        started = time.thread_time()
        with pytest.raises(BadImage):
            identify(data, MAX_PIXELS)
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.02


def test_small_images_may_be_decoded_on_the_event_loop() -> None:
    """Few bytes and few pixels; never a GIF, whose header does not bound its frames."""
    small = identify(encode(CHART, "JPEG"), MAX_PIXELS)
    large = identify(encode(flat("RGB", 0, 1000), "JPEG"), MAX_PIXELS)
    long = identify(encode(CHART, "JPEG") + bytes(100_000), MAX_PIXELS)
    gif = identify(synthetic.gif(screen=(1, 1)), MAX_PIXELS)

    assert small.is_bounded
    assert not large.is_bounded and not long.is_bounded and not gif.is_bounded


# Which pixels.


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


@by_name(synthetic.served())
def test_every_served_file_becomes_the_same_kind_of_array(data: bytes) -> None:
    """RGB, 32 x 32, contiguous, nobody else's to change."""
    assert is_what_was_promised(decode(data, MAX_PIXELS))


RED, WHITE, BLACK, PINK = (255, 0, 0), (255, 255, 255), (0, 0, 0), (255, 127, 127)
GREY = (128, 128, 128)


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


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "MPO"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    """And a phone's multi-picture file is the JPEG it begins with."""
    frames = [flat("RGB", colour) for colour in ("red", "green", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])

    assert np.abs(decode(data, MAX_PIXELS).astype(int) - RED).max() <= 2
    assert identify(data, MAX_PIXELS).format == {"WEBP": "WebP", "MPO": "JPEG"}.get(kind, kind)


Turn = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]

# What a viewer must do to the stored rows and columns, from the definition of the tag.
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


# Hostile and broken files.


@by_name(synthetic.bombs())
def test_bombs_cost_little(data: bytes) -> None:
    """Refused or decoded, in about no time; the memory is in the test after next."""
    start = time.process_time()
    assert is_answered(data)

    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", ["jpeg scans", "jpeg segments behind the frame header"])
def test_a_jpeg_in_countless_pieces_is_refused(name: str) -> None:
    """A few bytes each, but a scan visits every block of the image, which may be a large one."""
    with pytest.raises(BadImage, match="segments or scans"):
        decode(synthetic.bombs()[name], MAX_PIXELS)


@pytest.mark.parametrize("at", [2, 20], ids=["at the start", "behind the first segment"])
def test_a_jpeg_header_is_not_searched_for_far_and_wide(at: int) -> None:
    """A little rubbish between segments is common; megabytes of it would hold up the loop."""
    data = encode(CHART, "JPEG")

    assert identify(data[:at] + b"\xff" + bytes(500) + data[at:], MAX_PIXELS).width == SIDE
    with pytest.raises(BadImage, match="no frame header"):
        identify(data[:at] + b"\xff" + bytes(5000) + data[at:], MAX_PIXELS)


def test_what_follows_the_end_of_a_jpeg_is_not_counted() -> None:
    """Phones append a film to a photo, and in a film anything looks like a marker."""
    data = encode(CHART, "JPEG") + b"\xff\xda\0\2" * 5000

    assert is_what_was_promised(decode(data, MAX_PIXELS))


@by_name({name: data for name, data in synthetic.served().items() if len(data) < 20_000})
def test_a_file_cut_anywhere_is_refused_or_complete(data: bytes) -> None:
    for length in {*range(0, len(data), max(1, len(data) // 50)), *range(len(data))[-20:]}:
        assert is_answered(data[:length])


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


def test_only_our_own_pixel_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's would refuse these, or warn."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)

    for name in ("png.png", "webp.webp", "gif larger than its screen.gif"):
        assert is_what_was_promised(decode(synthetic.served()[name], MAX_PIXELS))


@by_name({name: data for name, data in synthetic.served().items() if len(data) < 8_000})
def test_flipped_bits_are_survived(data: bytes) -> None:
    """The same hundred for ever."""
    random = np.random.default_rng(len(data))
    for _ in range(100):
        flipped = bytearray(data)
        for position in random.integers(0, len(data), random.integers(1, 5)):
            flipped[position] ^= 1 << random.integers(8)
        assert is_answered(bytes(flipped), 1_000_000)


SIGNATURES = [
    b"\xff\xd8\xff",
    synthetic.PNG_SIGNATURE,
    b"GIF89a",
    b"BM" + bytes(12) + b"\x28\0\0\0",
    b"RIFF\x20\0\0\0WEBPVP8X",
    b"",
]


@given(st.sampled_from(SIGNATURES), st.binary(max_size=200))
def test_any_bytes_are_answered(signature: bytes, rest: bytes) -> None:
    """With pixels or one of three exceptions."""
    assert is_answered(signature + rest, 1_000_000)


def run(script: str, *arguments: str) -> str:
    """What the script prints, in a process where warnings are errors from the start."""
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    root = pathlib.Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_nothing_is_printed() -> None:
    """Odd files come through without a warning, even where warnings are errors."""
    script = """if True:
        from service.decoding.image import identify
        from tests.service import synthetic
        for data in synthetic.served().values():
            identify(data, 64_000_000).decode()
    """

    assert run(script) == ""


# Memory. Each in a process of its own, so that no peak hides another; the kernel's own figure,
# since getrusage hands on the peak of the parent.

GROWTH = """if True:
    import pathlib, re, sys
    from service.errors import BadImage, ImageTooLarge
    from service.decoding.image import identify

    def peak():
        return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

    before = peak()
    for path in pathlib.Path(sys.argv[1]).iterdir():
        try:
            identify(path.read_bytes(), 64_000_000).decode()
        except (BadImage, ImageTooLarge):
            pass
    print((peak() - before) * 1024)
"""


def growth(files: Iterable[bytes], folder: pathlib.Path) -> int:
    """Bytes by which decoding the files raises the peak of a fresh process."""
    for number, data in enumerate(files):
        (folder / str(number)).write_bytes(data)
    return int(run(GROWTH, str(folder)))


@pytest.mark.slow
def test_all_bombs_together_take_less_memory_than_one_photo(tmp_path: pathlib.Path) -> None:
    assert growth(synthetic.bombs().values(), tmp_path) < 48 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "CMYK", {"progressive": True, "subsampling": 0}),
        ("PNG", "RGBA", {"compress_level": 1}),
        ("WEBP", "RGBA", {"lossless": True, "quality": 0, "method": 0}),
        ("GIF", "P", {}),
    ],
)
def test_memory_stays_within_thirteen_bytes_a_pixel(
    kind: str, mode: str, options: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """And a little for the tiles; by far most of it is the decoder's own."""
    data = encode(Image.new(mode, (3000, 3000), 3), kind, **options)

    assert growth([data], tmp_path) < 13 * 3000 * 3000 + 16 * 2**20


# Real files, where there are some.

# Pillow opens them and then finds no picture in them.
OPENS_ONLY = {
    "Pillow__Tests__images__apng__chunk_no_fctl.png",
    "Pillow__Tests__images__broken_data_stream.png",
}
# Pillow before 13 fills in what is missing of a run-length BMP.
FILLED_IN = {"image__tests__images__bmp__images__pal4rlecut.bmp"}
# What Pillow alone gets wrong: a transparent colour at 4 bits, grey at 16.
RENDERED_BETTER = {
    "image__tests__images__png__transparency__tbbn0g04.png",
    "image-png__tests__pngsuite__g10n0g16.png",
}


def test_every_odd_file_is_answered_soon(data: pathlib.Path) -> None:
    """Whatever it is: pixels, or one of three exceptions."""
    for path in sorted(data.glob("odd/*/*")):
        start = time.process_time()
        assert is_answered(path.read_bytes()), path.name
        assert time.process_time() - start < 2, path.name


def test_valid_files_are_shown_as_they_should_or_not_served(data: pathlib.Path) -> None:
    """Nobody's good picture is refused, and it looks as it does elsewhere."""
    shown = 0
    for path in sorted(data.glob("odd/valid/*")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = str(Image.open(path).format)
        if kind in {"IM", "SPIDER"}:  # no signature to tell them by
            continue
        if kind not in {"JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF"}:
            with pytest.raises(UnsupportedImageType):
                decode(path.read_bytes(), MAX_PIXELS)
        elif path.name not in OPENS_ONLY:
            pixels = decode(path.read_bytes(), MAX_PIXELS)
            shown += 1
            if path.name not in RENDERED_BETTER:
                difference = np.abs(pixels.astype(int) - rendered_plainly(path))
                assert difference.mean() < 5, path.name
    assert shown > 50


def test_broken_files_are_refused(data: pathlib.Path) -> None:
    for path in sorted(data.glob("odd/broken/*")):
        if path.name not in FILLED_IN:
            with pytest.raises(REFUSALS):
                decode(path.read_bytes(), MAX_PIXELS)


@pytest.mark.slow
def test_photos_look_as_if_decoded_in_full(data: pathlib.Path) -> None:
    for path in sorted(data.glob("photos/*.[jpw]*"))[::5]:
        difference = np.abs(
            decode(path.read_bytes(), MAX_PIXELS) - rendered_plainly(path).astype(int)
        )
        assert difference.mean() < 2, path.name
