"""The quick way through a small JPEG gets the pixels that Pillow gets, or leaves it to Pillow."""

from __future__ import annotations

import io
import re
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
    if upload(data).is_bounded:
        quick = here(data)
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
