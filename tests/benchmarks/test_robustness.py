"""Each change of an image gives another image of the same size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.robustness import CHANGES


@pytest.mark.parametrize("name", CHANGES)
def test_changes(name: str) -> None:
    """All but the first change the pixels, and the same image is always changed alike."""
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    first, again = (np.asarray(CHANGES[name](Image.fromarray(pixels))) for _ in range(2))
    assert first.shape == pixels.shape and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert np.array_equal(first, pixels) == (name == "as they are")
