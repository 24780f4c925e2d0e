"""Probes: images that test whether a neural network computes the same probabilities as before.

The pixels of the images come from a formula. When a version is added, the network's probabilities
for these images are recorded in the version's manifest. Whenever the version is loaded, the
probabilities are computed again and compared. The checksum in the manifest shows whether the file
has changed. The probes show whether the unchanged file gives different results on this machine,
with this version of MXNet, or in this precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model_store.batch import SIDE, Image, Rows
from model_store.manifest import BadModel, PrecisionName

COUNT = 4
MAX_DIFFERENCE: dict[PrecisionName, float] = {
    "fp32": 1e-3,  # CPUs add numbers in different orders, and rounding errors differ
    "int8": 0.1,  # on CPUs without VNNI instructions, some integer sums overflow
    "fp16": 0.05,
}
"""Maximum difference between a recorded probability and a computed probability."""


def images() -> Image:
    """Return the probe images: uint8 (COUNT, 32, 32, 3), colored waves of growing frequency.

    This function must not be changed, because the probabilities of existing versions were recorded
    for these images.
    """
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = [
        np.stack([8 * x * n + 3 * y, x * y * n, 5 * (SIDE - y) * n + x], axis=-1) % 256
        for n in range(1, COUNT + 1)
    ]
    stacked: Image = np.stack(waves).astype(np.uint8)
    return stacked


def repeated(rows: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
    """Return the first `count` rows of `rows`. If there are fewer rows, they are repeated."""
    array = np.asarray(rows)
    return np.resize(array, (count, *array.shape[1:]))


def check(rows: Rows, recorded: npt.NDArray[np.float64], precision: PrecisionName) -> None:
    """Compare the computed probabilities of the probe images with the recorded probabilities.

    Args:
        rows: Computed probabilities, float32 (n, classes).
        recorded: Probabilities from the manifest, float64 (n, classes).
        precision: Precision in which `rows` were computed.

    Raises:
        BadModel: A probability differs by more than `MAX_DIFFERENCE`.
    """
    differences = np.abs(rows - recorded).max(axis=1)
    worst = int(differences.argmax())
    if not differences[worst] <= MAX_DIFFERENCE[precision]:  # also true for NaN
        raise BadModel(
            "the network's results differ from the results when the version was added: in "
            f"{precision}, a probability of probe image {worst % COUNT + 1} differs by "
            f"{differences[worst]:.2g}, and at most {MAX_DIFFERENCE[precision]:g} is allowed. "
            "Compare the manifest with the original manifest. If both are equal, this machine "
            "computes wrong results"
        )


def record(rows: Rows) -> tuple[tuple[float, ...], ...]:
    """Return the rows as tuples of numbers, which a manifest can store."""
    return tuple(tuple(round(float(value), 7) for value in row) for row in rows)
