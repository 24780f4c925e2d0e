"""Accuracy, confusion, calibration and temperature, by hand on a few rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.training.evaluation import (
    BINS,
    calibration_error,
    evaluate,
    fit_temperature,
    tempered,
)

CLASSES = ("cat", "dog", "bird")
ROWS = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.3, 0.7, 0]], dtype=np.float32)
LABELS = np.array([0, 1, 1, 1])


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def test_by_hand() -> None:
    """Four images, of which the second dog is taken for a cat; no bird."""
    found = evaluate(ROWS, LABELS, CLASSES)
    assert (found.images, found.accuracy) == (4, 0.75)
    assert found.by_class == {"cat": 1.0, "dog": pytest.approx(2 / 3), "bird": None}
    assert found.confusion == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert found.negative_log_likelihood == pytest.approx(
        -np.mean(np.log([0.9, 0.4, 0.8, 0.7])), abs=1e-6
    )
    # each image is alone in its bin: 0.1 + 0.6 + 0.2 + 0.3 away from what it turned out to be
    assert found.calibration_error == pytest.approx(1.2 / 4, abs=1e-6)


def test_errors_in_one_bin_cancel() -> None:
    """Two images at 0.7, one right: the network is 0.2 surer than right, not 0.5."""
    rows = np.array([[0.7, 0.3, 0], [0.7, 0.3, 0]], dtype=np.float32)
    assert evaluate(rows, np.array([0, 1]), CLASSES).calibration_error == pytest.approx(0.2)


def test_bins() -> None:
    """Fifteen of equal width; 1 is in the last."""
    rows = np.array([[1, 0, 0], [0.93, 0.07, 0], [0.34, 0.33, 0.33]], dtype=np.float32)
    bins = evaluate(rows, np.array([0, 0, 0]), CLASSES).reliability
    assert len(bins) == BINS
    assert [number for number, one in enumerate(bins) if one.images] == [5, 13, 14]
    assert (bins[0].probability, bins[0].accuracy) == (None, None)


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        (np.zeros((0, 3)), []),
        (np.full((1, 3), np.nan), [0]),
        (np.full((1, 2), 0.5), [0]),
        (np.full((2, 3), 1 / 3), [0]),
    ],
)
def test_refused(rows: Any, labels: list[int]) -> None:
    """No image, no number, or another number of classes or images is no accuracy of 0."""
    with pytest.raises(ValueError, match="probabilities"):
        evaluate(rows, np.array(labels, dtype=np.int64), CLASSES)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_temperature_is_found_again(temperature: float) -> None:
    """Labels drawn from probabilities, logits then stretched: the stretch is what is fitted."""
    random = np.random.default_rng(3)
    logits = random.normal(0, 2, (8_000, 10))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)  # as the softmax says
    rows = softmax(logits * temperature)
    fitted = fit_temperature(rows, labels)
    assert fitted == pytest.approx(temperature, rel=0.05)
    before, after = (
        evaluate(tempered(rows, at), labels, [str(n) for n in range(10)]) for at in (1, fitted)
    )
    assert after.negative_log_likelihood <= before.negative_log_likelihood + 1e-9
    if temperature != 1:
        assert after.calibration_error < before.calibration_error / 3


def test_what_underflowed_does_no_harm() -> None:
    """A probability of 0 for the label is very unlikely, not infinitely so."""
    rows = np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32)
    found = evaluate(rows, np.array([1, 1]), CLASSES)
    assert np.isfinite(found.negative_log_likelihood)
    assert np.isfinite(fit_temperature(rows, np.array([1, 1])))


@given(st.floats(0.05, 20), st.lists(st.floats(-8, 8), min_size=3, max_size=3, unique=True))
def test_a_temperature_changes_no_class(temperature: float, logits: list[float]) -> None:
    """Order and sum of the probabilities stay."""
    row = tempered(softmax(np.array([logits])), temperature)[0]
    assert np.isclose(row.sum(), 1, atol=1e-5)
    order = np.argsort(logits)
    assert np.all(np.diff(row[order]) >= 0)


def test_calibration_error_of_empty_bins() -> None:
    """Bins without an image count for nothing."""
    bins = evaluate(ROWS, LABELS, CLASSES).reliability
    assert calibration_error([one for one in bins if one.images]) == calibration_error(bins)
