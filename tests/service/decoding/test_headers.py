"""Type and size of an image, from its header alone."""

from __future__ import annotations

import contextlib
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.decoding.headers import read_header
from service.decoding.image import BYTES_PER_PIXEL, identify
from service.decoding.picture import SIDE
from service.errors import BadImage, ImageTooLarge, UnsupportedImageType
from tests.service import synthetic
from tests.service.decoding.decoded import (
    MAX_PIXELS,
    REFUSALS,
    by_name,
    decode,
    is_what_was_promised,
)
from tests.service.synthetic import CHART, encode, flat

# Filters of pytest come before the one that `service.decoding` sets.
pytestmark = pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")


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
    with pytest.raises(BadImage, match="is truncated"):
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


@pytest.mark.parametrize("at", [2, 20], ids=["at the start", "behind the first segment"])
def test_a_jpeg_header_is_not_searched_for_far_and_wide(at: int) -> None:
    """A little rubbish between segments is common; megabytes of it would hold up the loop."""
    data = encode(CHART, "JPEG")

    assert identify(data[:at] + b"\xff" + bytes(500) + data[at:], MAX_PIXELS).width == SIDE
    with pytest.raises(BadImage, match="no frame header"):
        identify(data[:at] + b"\xff" + bytes(5000) + data[at:], MAX_PIXELS)


def test_a_bmp_of_either_format_states_its_size() -> None:
    """The short header of OS/2 has 16-bit sizes, and a negative height means the top row first."""
    pixels = bytes(4 * 3 * 3)
    windows = struct.pack("<IiiHHI", 40, 3, -3, 1, 24, 0) + bytes(20)
    os2 = struct.pack("<IHHHH", 12, 3, 3, 1, 24)
    for header in (windows, os2):
        data = b"BM" + bytes(8) + struct.pack("<I", 14 + len(header)) + header + pixels
        assert read_header(data) == ("BMP", 3, 3)


def test_a_run_length_bmp_has_a_limit_of_its_own() -> None:
    """Pillow decodes it slowly, so that 4 million pixels are the maximum, whatever the setting."""
    for width, allowed in ((2000, True), (2001, False)):
        header = struct.pack("<IiiHHI", 40, width, 2000, 1, 8, 1)
        data = b"BM" + bytes(12) + header + bytes(20)
        if allowed:
            assert read_header(data) == ("BMP run-length", width, 2000)
        else:
            with pytest.raises(ImageTooLarge, match=r"2001 x 2000 .*4,000,000"):
                read_header(data)


@pytest.mark.parametrize("name", ["PNG", "BMP", "WEBP", "JPEG"])
def test_an_image_that_ends_within_its_header_is_rejected(name: str) -> None:
    """Wherever it ends behind its signature, the message says that the file is not whole."""
    data = encode(CHART, name)
    ends = {"PNG": 24, "BMP": 26, "WEBP": 30, "JPEG": 20}
    for length in range(18, ends[name]):
        with pytest.raises(BadImage, match="Send the whole file"):
            read_header(data[:length])


def test_an_image_without_pixels_is_rejected() -> None:
    """The message has the width and the height. The first frame of a GIF sets its size."""
    data = bytearray(encode(CHART, "PNG"))
    data[16:20] = bytes(4)
    with pytest.raises(BadImage, match="0 x 32 pixels"):
        read_header(bytes(data))
    assert read_header(synthetic.gif(screen=(0, 0))) == ("GIF", 32, 32)
    late = synthetic.gif(screen=(0, 0), before=600 * b"!\xfe\x01x\x00")
    assert read_header(late) == ("GIF", 0, 0)  # the decoder finds the frame


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encode(CHART, "JPEG"), "JPEG"),
        (encode(CHART, "JPEG", progressive=True), "JPEG progressive"),
        (encode(flat("RGB", 0), "PNG"), "PNG"),
        (encode(flat("RGBA", (0, 0, 0, 0)), "PNG"), "PNG"),
        (encode(flat("L", 0), "PNG"), "PNG palette"),
        (encode(flat("P", 0), "PNG"), "PNG palette"),
        (encode(CHART, "WEBP"), "WebP"),
        (encode(CHART, "WEBP", lossless=True), "WebP lossless"),
        (encode(flat("RGBA", (0, 0, 0, 9)), "WEBP", lossless=True), "WebP lossless"),
        (encode(CHART, "BMP"), "BMP"),
        (encode(flat("P", 0), "GIF"), "GIF"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_kind_is_one_that_costs_are_known_of(data: bytes, kind: str) -> None:
    """Kinds with other costs of decoding are told apart, and each has its bytes per pixel."""
    assert read_header(data)[0] == kind
    assert kind in BYTES_PER_PIXEL


def test_a_chunk_of_lossless_pixels_is_found_behind_others() -> None:
    """A WebP is lossless wherever in its first 4,096 bytes the chunk is."""
    data = encode(CHART, "WEBP", lossless=True)
    for distance, kind in ((4000, "WebP lossless"), (4200, "WebP")):
        before = b"VP8X" + struct.pack("<II", 10, 0) + bytes(6) + b"ICCP" + bytes(distance)
        assert read_header(data[:12] + before + data[12:])[0] == kind


def test_read_header_counts_gray_of_16_bits_as_color() -> None:
    """A PNG in gray of 16 bits takes as long to decode as one in color."""
    assert read_header(encode(flat("I;16", 1000), "PNG"))[0] == "PNG"
    assert read_header(encode(flat("L", 100), "PNG"))[0] == "PNG palette"
