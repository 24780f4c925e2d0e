"""The probes: the same for ever, and compared without mercy."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from model_store import probes
from model_store.manifest import BadModel, PrecisionName


def test_never_changed() -> None:
    """Other images would make every recorded version look broken."""
    images = probes.images()
    assert images.shape == (probes.COUNT, 32, 32, 3) and images.dtype == np.uint8
    assert (
        hashlib.sha256(images.tobytes()).hexdigest()
        == "980cec0beb9cfd3c83b54ec4e328fc43ae4faa903a22ae3e46d9b2b6992cb3e9"
    )


def test_what_was_recorded_passes() -> None:
    """Rounding in the manifest is within the tolerance; another kernel's rounding as well."""
    rows = np.random.default_rng(1).dirichlet(np.ones(10), 4).astype(np.float32)
    probes.check(rows, np.array(probes.record(rows)), "fp32")
    probes.check(rows + 1e-5, np.array(probes.record(rows)), "fp32")


@pytest.mark.parametrize(("precision", "difference"), [("fp32", 0.002), ("int8", 0.11)])
def test_another_answer(precision: PrecisionName, difference: float) -> None:
    """The worst row is named, with how far it is off."""
    recorded = np.full((4, 2), 0.5)
    rows = recorded.astype(np.float32)
    rows[2] += (difference, -difference)
    with pytest.raises(BadModel, match=f"{precision}, probe 3 differs by {difference:.2g}"):
        probes.check(rows, recorded, precision)


def test_not_a_number_is_another_answer() -> None:
    rows = np.full((4, 2), 0.5, dtype=np.float32)
    rows[1, 0] = np.nan
    with pytest.raises(BadModel, match="probe 2"):
        probes.check(rows, np.full((4, 2), 0.5), "int8")


def test_repeated() -> None:
    """A bucket larger than the probes is filled with them, row for row as the images."""
    assert probes.repeated([[1, 2], [3, 4]], 5).tolist() == [[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]]
    assert probes.repeated([[1, 2], [3, 4]], 1).tolist() == [[1, 2]]
