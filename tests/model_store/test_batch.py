"""Batches: buckets, and the check of a network's output."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from model_store.batch import BadRow, BatchFormat, buckets
from model_store.manifest import Manifest
from tests.model_store.test_manifest import GOOD


@pytest.mark.parametrize(
    ("size", "all_of_them", "few"),
    [
        (1, [1], [1]),
        (6, [1, 2, 4, 6], [1, 4, 6]),
        (8, [1, 2, 4, 8], [1, 4, 8]),
        (16, [1, 2, 4, 8, 16], [1, 4, 16]),
    ],
)
def test_buckets_are_powers_of_two_and_the_maximum(
    size: int, all_of_them: list[int], few: list[int]
) -> None:
    """Every second power only, if each bucket takes much memory."""
    assert buckets(size) == all_of_them
    assert buckets(size, few=True) == few


def two_classes() -> BatchFormat:
    return BatchFormat(Manifest.model_validate(GOOD), [1, 2, 4])


def test_check_rows_replaces_a_row_that_is_not_finite() -> None:
    """Its neighbors stay."""
    rows = np.array([[0.5, 0.5], [np.nan, 0.5], [0.1, 0.9]], dtype=np.float32)
    good, bad, also_good = two_classes().check_rows(rows)
    assert isinstance(bad, BadRow)
    assert np.array_equal(cast(Any, good), rows[0])
    assert np.array_equal(cast(Any, also_good), rows[2])


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 3), (3, 2, 1)])
def test_check_rows_rejects_another_shape(shape: tuple[int, ...]) -> None:
    """There must be one number for each class in the manifest."""
    results = two_classes().check_rows(np.zeros(shape, dtype=np.float32))
    assert [type(result) for result in results] == [BadRow] * 3
