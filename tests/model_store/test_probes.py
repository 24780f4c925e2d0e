"""Probes: images that never change, and the comparison of results."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from model_store import probes
from model_store.manifest import BadModel, PrecisionName


def test_images_never_change() -> None:
    """Other images would make every recorded version fail."""
    images = probes.images()
    assert images.shape == (probes.COUNT, 32, 32, 3) and images.dtype == np.uint8
    assert (
        hashlib.sha256(images.tobytes()).hexdigest()
        == "980cec0beb9cfd3c83b54ec4e328fc43ae4faa903a22ae3e46d9b2b6992cb3e9"
    )


def test_check_accepts_recorded_rows() -> None:
    """Rounding in the manifest and in other kernels is within the tolerance."""
    rows = np.random.default_rng(1).dirichlet(np.ones(10), 4).astype(np.float32)
    probes.check(rows, np.array(probes.record(rows)), "fp32")
    probes.check(rows + 1e-5, np.array(probes.record(rows)), "fp32")


@pytest.mark.parametrize(("precision", "difference"), [("fp32", 0.002), ("int8", 0.11)])
def test_check_rejects_another_row(precision: PrecisionName, difference: float) -> None:
    """The message names the worst row and its difference."""
    recorded = np.full((4, 2), 0.5)
    rows = recorded.astype(np.float32)
    rows[2] += (difference, -difference)
    with pytest.raises(
        BadModel, match=f"{precision}, a probability of probe image 3 differs by {difference:.2g}"
    ):
        probes.check(rows, recorded, precision)


def test_check_rejects_nan() -> None:
    """NaN differs from every number."""
    rows = np.full((4, 2), 0.5, dtype=np.float32)
    rows[1, 0] = np.nan
    with pytest.raises(BadModel, match="probe image 2"):
        probes.check(rows, np.full((4, 2), 0.5), "int8")


def test_repeated_fills_a_bucket() -> None:
    """A bucket larger than the number of probes gets repeated images and rows."""
    assert probes.repeated([[1, 2], [3, 4]], 5).tolist() == [[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]]
    assert probes.repeated([[1, 2], [3, 4]], 1).tolist() == [[1, 2]]
