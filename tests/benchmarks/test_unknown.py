"""Scores of known pictures are compared with those of unknown ones."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.unknown import SCORES, area, drawn
from service.decoding.picture import SIDE, fit


def test_area() -> None:
    """1 if every known picture has the larger score, 0 if none, one half by chance."""
    low, high = np.arange(10.0), np.arange(20.0, 25.0)
    assert area(high, low) == 1
    assert area(low, high) == 0
    assert area(low, low) == pytest.approx(0.5)


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_scores(score: object) -> None:
    """Larger for logits that favor one class than for logits that favor none."""
    assert callable(score)
    sure, unsure = score(np.array([[9.0, 0.0, 0.0], [1.0, 0.5, 0.5]]), 1.3)
    assert sure > unsure


def test_drawn() -> None:
    """Each kind has pictures that differ, the same in every run."""
    first, again = (drawn(np.random.default_rng(1)) for _ in range(2))
    for kind, images in first.items():
        pixels = [fit(image, *image.size).tobytes() for image in images]
        assert len(pixels[0]) == SIDE * SIDE * 3
        assert len(set(pixels)) > len(pixels) / 2, kind
        assert pixels == [fit(image, *image.size).tobytes() for image in again[kind]]
