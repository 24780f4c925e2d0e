"""Probes: a few images made from a formula, and the probabilities a network must compute for them.

The probabilities are recorded in the manifest when a version is added, and compared whenever it is
loaded. A checksum detects a changed file. The probes detect that this machine, with its MXNet and
in this precision, computes something else from the same file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model_store.batch import SIDE, Image, Rows
from model_store.manifest import BadModel, PrecisionName

COUNT = 4
MAX_DIFFERENCE: dict[PrecisionName, float] = {
    "fp32": 1e-3,  # other kernels add in another order
    "int8": 0.1,  # CPUs without VNNI saturate in some cases
    "fp16": 0.05,
}
"""Maximum difference between a recorded probability and a computed one."""


def images() -> Image:
    """uint8 (COUNT, 32, 32, 3): colored waves of growing frequency.

    Must not be changed: the probabilities of existing versions were recorded for these images.
    """
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = [
        np.stack([8 * x * n + 3 * y, x * y * n, 5 * (SIDE - y) * n + x], axis=-1) % 256
        for n in range(1, COUNT + 1)
    ]
    stacked: Image = np.stack(waves).astype(np.uint8)
    return stacked


def repeated(rows: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
    """`count` rows: those of `rows`, repeated or cut off."""
    array = np.asarray(rows)
    return np.resize(array, (count, *array.shape[1:]))


def check(rows: Rows, recorded: npt.NDArray[np.float64], precision: PrecisionName) -> None:
    """Raises BadModel if a row of probabilities differs from the recorded one.

    Args:
        rows: (n, classes), as computed.
        recorded: (n, classes), from the manifest.
        precision: In which `rows` were computed.
    """
    differences = np.abs(rows - recorded).max(axis=1)
    worst = int(differences.argmax())
    if not differences[worst] <= MAX_DIFFERENCE[precision]:  # also true for NaN
        raise BadModel(
            f"the network computes other results than when it was added: in {precision}, probe "
            f"{worst % COUNT + 1} differs by {differences[worst]:.2g} where "
            f"{MAX_DIFFERENCE[precision]:g} is allowed. Compare the manifest with its source; if "
            "they are equal, this machine computes wrong results"
        )


def record(rows: Rows) -> tuple[tuple[float, ...], ...]:
    """The rows as a manifest stores them."""
    return tuple(tuple(round(float(value), 7) for value in row) for row in rows)
