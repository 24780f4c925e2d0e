"""Images that are decoded on the event loop: their pixels are those that Pillow gets, and their
cost is bounded."""

from __future__ import annotations

import io
import re
import struct
import time
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.decoding.image import EncodedImage, Pixels, identify
from tests.service import synthetic
from tests.service.synthetic import CHART, encode

MAX_PIXELS = 1_000_000


def upload(data: bytes) -> EncodedImage:
    return identify(data, MAX_PIXELS)


def here(data: bytes) -> Pixels | None:
    """The pixels that the event loop gets; None: a decoder process judges."""
    image = upload(data)
    return image.decode_here() if image.is_bounded else None


def by_pillow(data: bytes) -> npt.NDArray[np.uint8]:
    return upload(data).decode()


def jpeg(side: int = 32, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side + side // 3, 3), np.uint8)
    return encode(Image.fromarray(pixels).convert(mode), "JPEG", **options)


@pytest.mark.parametrize("quality", [1, 30, 75, 95, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("side", [1, 7, 24, 31, 32, 33, 96])
def test_the_same_pixels(side: int, subsampling: int, quality: int) -> None:
    """At any size, quality and subsampling; not one step of one channel apart."""
    data = jpeg(side, quality=quality, subsampling=subsampling)
    quick = here(data)
    if len(data) > MAX_BYTES:
        assert quick is None
    else:
        assert quick is not None and np.array_equal(quick, by_pillow(data))


def test_grey_and_the_size_of_the_network() -> None:
    """One channel becomes three; a 32 x 32 image comes through as it is, read-only."""
    grey = here(jpeg(mode="L"))
    assert grey is not None and np.array_equal(grey, by_pillow(jpeg(mode="L")))
    chart = here(encode(CHART, "JPEG", quality=95))
    assert chart is not None
    assert chart.shape == (32, 32, 3) and chart.dtype == np.uint8 and chart.flags.c_contiguous
    assert not chart.flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        jpeg(progressive=True),
        jpeg(mode="CMYK"),
        jpeg(exif=synthetic.exif(6)),
        jpeg(side=300),
        jpeg()[:-2],
        jpeg()[:-50],
        jpeg()[:-2] + b"\0" * 50,
    ],
    ids=["progressive", "CMYK", "EXIF", "large", "no end", "cut", "junk"],
)
def test_anything_unusual_is_left_to_pillow(data: bytes) -> None:
    """More scans, other colours, notes that turn it, damage, size: one judge for all of these."""
    assert here(data) is None


DAMAGED = jpeg(24, quality=60)


@given(st.integers(2, len(DAMAGED) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_damage_is_judged_as_pillow_does(place: int, new: bytes, lost: int) -> None:
    """Whatever bytes are changed: no pixels where Pillow has none, and no others than Pillow's."""
    data = DAMAGED[:place] + new + DAMAGED[place + lost :]
    try:
        quick = here(data)
    except Exception:  # noqa: BLE001  # its header is broken for both
        return
    if quick is not None:
        assert np.array_equal(quick, by_pillow(data))


NOTE = b"\xff\xfe\x00\x07Adobe"


@pytest.mark.parametrize("optimize", [False, True])
def test_what_is_noted_in_front_of_the_pixels_is_pillows(optimize: bool) -> None:
    """Between any two of its segments; behind the head of the scan it would be pixels."""
    data = jpeg(optimize=optimize)
    assert here(data) is not None
    end = data.index(b"\xff\xda")
    for place in (found.start() for found in re.finditer(rb"\xff[\xc0-\xef]", data)):
        if 2 < place <= end:
            assert here(data[:place] + NOTE + data[place:]) is None


def test_an_upright_photo_with_a_thumbnail_is_not_mistaken() -> None:
    """A file whose EXIF carries another JPEG is Pillow's."""
    thumbnail = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(thumbnail, "JPEG")
    data = jpeg(exif=synthetic.exif(1) + thumbnail.getvalue())
    assert here(data) is None


MAX_SECONDS = 0.005
"""CPU time that an image may take on the event loop. The worst takes 1 ms on a quiet machine."""
MAX_BYTES = 32 * 1024
SIZES = [(1, 16_384), (16_384, 1), (2, 8192), (1, 512), (32, 512), (512, 32), (128, 128)]
SCANS = {1: b"\xff\xda\0\x08\1\1\0\0\x3f\0", 3: b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0"}
"""A scan without data of one component, and of all three."""


def scans(size: tuple[int, int], first: int, others: int, **options: Any) -> bytes:
    """A JPEG of as many empty scans as fit, which have this many components."""
    data = encode(Image.new("RGB", size), "JPEG", subsampling=0, **options)
    head = data[: data.index(b"\xff\xda")] + SCANS[first]
    count = (MAX_BYTES - len(head) - 2) // len(SCANS[others])
    return head + SCANS[others] * count + b"\xff\xd9"


def noise(size: tuple[int, int], quality: int) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return encode(Image.fromarray(pixels), "JPEG", quality=quality, subsampling=0)


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(size: tuple[int, int], color: int, depth: int, filtered: int) -> bytes:
    """A PNG of this color type, depth and filter; pieces of its pixels are as many as may be."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = bytes([filtered]) + bytes(size[0] * channels * depth // 8)
    pixels = zlib.compress(row * size[1] * 100)  # more than the image has
    step = len(pixels) // 24 + 1
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)),
            chunk(b"PLTE", bytes(768)),
            *(chunk(b"IDAT", pixels[at : at + step]) for at in range(0, len(pixels), step)),
            chunk(b"IEND", b""),
        ]
    )


HOSTILE = {
    **{
        f"JPEG {size} scans of {first} and {others} {options}": scans(
            size, first, others, **options
        )
        for size in SIZES
        for first, others in ((1, 1), (1, 3), (3, 1), (3, 3))
        for options in ({}, {"optimize": True})
    },
    **{f"JPEG {size} noise": noise(size, 60) for size in SIZES},
    **{
        f"PNG {size} {color} {depth} {filtered}": png(size, color, depth, filtered)
        for size in SIZES
        for color, depth in ((0, 8), (0, 16), (2, 8), (2, 16), (3, 8), (4, 16), (6, 8), (6, 16))
        for filtered in (0, 3, 4)
    },
}


@pytest.mark.slow
def test_what_the_event_loop_decodes_is_cheap() -> None:
    """Whatever its shape, and whatever it holds besides pixels: within some milliseconds."""
    took = {name: cpu_seconds(data) for name, data in HOSTILE.items()}
    assert {name: seconds for name, seconds in took.items() if seconds > MAX_SECONDS} == {}


def cpu_seconds(data: bytes) -> float:
    """Seconds in which the event loop decodes it, or finds that it must not: the least of three."""
    took = []
    for _ in range(3):
        began = time.thread_time()
        here(data)
        took.append(time.thread_time() - began)
    return min(took)


@pytest.mark.parametrize("options", [{}, {"optimize": True}], ids=["standard tables", "own tables"])
@pytest.mark.parametrize(("first", "bounded"), [(1, False), (3, True)])
def test_only_jpegs_of_one_scan_are_bounded(
    first: int, bounded: bool, options: dict[str, Any]
) -> None:
    """Where the first scan has all components, decoders read no other; else they read all."""
    assert upload(scans((64, 64), first, 3, **options)).is_bounded is bounded


def test_long_sides_are_not_bounded() -> None:
    """A line of pixels is a line of blocks of pixels to a decoder."""
    assert upload(noise((512, 1), 60)).is_bounded
    assert not upload(noise((513, 1), 60)).is_bounded and not upload(noise((1, 513), 60)).is_bounded


def test_gray_of_16_bits_is_not_bounded() -> None:
    """Its table takes longer than its pixels; other small PNGs are."""
    assert not upload(png((8, 8), 0, 16, 0)).is_bounded
    assert upload(png((8, 8), 0, 8, 0)).is_bounded and upload(png((8, 8), 2, 16, 0)).is_bounded
