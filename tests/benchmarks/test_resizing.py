"""Each way of resizing gives what the network takes, and the sign test counts rightly."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.resizing import WAYS, sign_test


@pytest.mark.parametrize("size", [(32, 32), (200, 90), (61, 300)])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_ways(way: object, size: tuple[int, int]) -> None:
    """Any picture becomes as many images of 32 x 32 pixels as any other."""
    assert callable(way)
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    images = way(Image.fromarray(pixels))
    assert {(image.size, image.mode) for image in images} == {((32, 32), "RGB")}
    assert len(images) == len(way(Image.new("RGB", (50, 50))))


@pytest.mark.parametrize(
    ("gained", "lost", "expected"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (8, 3, 0.2266)]
)
def test_sign_test(gained: int, lost: int, expected: float) -> None:
    """Two-sided, of equally likely gains and losses."""
    assert sign_test(gained, lost) == sign_test(lost, gained) == pytest.approx(expected, abs=1e-4)
