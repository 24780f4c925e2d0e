"""Accuracy, confusion, calibration and temperature, compared with values computed by hand."""

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


def test_evaluate() -> None:
    """Four images: one dog is predicted as a cat, and there is no bird."""
    evaluation = evaluate(ROWS, LABELS, CLASSES)
    assert (evaluation.images, evaluation.accuracy) == (4, 0.75)
    assert evaluation.by_class == {"cat": 1.0, "dog": pytest.approx(2 / 3), "bird": None}
    assert evaluation.confusion == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert evaluation.negative_log_likelihood == pytest.approx(
        -np.mean(np.log([0.9, 0.4, 0.8, 0.7])), abs=1e-6
    )
    # Each image is alone in its bin: the differences are 0.1, 0.6, 0.2 and 0.3.
    assert evaluation.calibration_error == pytest.approx(1.2 / 4, abs=1e-6)


def test_calibration_error_within_a_bin() -> None:
    """Differences cancel within a bin: two images at 0.7, one correct, have an error of 0.2."""
    rows = np.array([[0.7, 0.3, 0], [0.7, 0.3, 0]], dtype=np.float32)
    assert evaluate(rows, np.array([0, 1]), CLASSES).calibration_error == pytest.approx(0.2)


def test_bins() -> None:
    """There are fifteen bins of equal width; probability 1 is in the last."""
    rows = np.array([[1, 0, 0], [0.93, 0.07, 0], [0.34, 0.33, 0.33]], dtype=np.float32)
    bins = evaluate(rows, np.array([0, 0, 0]), CLASSES).reliability
    assert len(bins) == BINS
    assert [number for number, one in enumerate(bins) if one.images] == [5, 13, 14]
    assert (bins[0].probability, bins[0].accuracy) == (None, None)


@pytest.mark.parametrize(
    ("rows", "labels", "words"),
    [
        (np.zeros((0, 3)), [], "there are no images"),
        (np.full((1, 3), np.nan), [0], "some probabilities are not finite"),
        (np.full((1, 2), 0.5), [0], r"have the shape \(1, 2\) instead of \(1, 3\)"),
        (np.full((2, 3), 1 / 3), [0], r"have the shape \(2, 3\) instead of \(1, 3\)"),
    ],
)
def test_evaluate_rejects(rows: Any, labels: list[int], words: str) -> None:
    """Without images, with NaN, or with another number of classes or images, there is no result."""
    with pytest.raises(ValueError, match=words):
        evaluate(rows, np.array(labels, dtype=np.int64), CLASSES)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_fit_temperature(temperature: float) -> None:
    """The temperature that logits were multiplied by is recovered."""
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


def test_zero_probability() -> None:
    """A probability of 0 for the label gives a finite likelihood and temperature."""
    rows = np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32)
    evaluation = evaluate(rows, np.array([1, 1]), CLASSES)
    assert np.isfinite(evaluation.negative_log_likelihood)
    assert np.isfinite(fit_temperature(rows, np.array([1, 1])))


@given(st.floats(0.05, 20), st.lists(st.floats(-8, 8), min_size=3, max_size=3, unique=True))
def test_tempered_keeps_the_order(temperature: float, logits: list[float]) -> None:
    """A temperature changes neither the order nor the sum of the probabilities."""
    row = tempered(softmax(np.array([logits])), temperature)[0]
    assert np.isclose(row.sum(), 1, atol=1e-5)
    order = np.argsort(logits)
    assert np.all(np.diff(row[order]) >= 0)


def test_calibration_error_of_empty_bins() -> None:
    """Empty bins do not change the calibration error."""
    bins = evaluate(ROWS, LABELS, CLASSES).reliability
    assert calibration_error([one for one in bins if one.images]) == calibration_error(bins)
