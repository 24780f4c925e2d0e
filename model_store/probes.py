"""A few images made from a formula, and what a network is expected to say of them.

A checksum tells that a file is the one that was added; the probes tell that this machine, with
this MXNet and this precision, still computes from it what was computed then. What they gave is
recorded in the manifest when a version is added, and compared whenever it is loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model_store.manifest import BadModel, PrecisionName

COUNT = 4
SIDE = 32
MAY_DIFFER: dict[PrecisionName, float] = {
    "fp32": 1e-3,  # other kernels add up in another order
    "int8": 0.1,  # CPUs without VNNI saturate where others do not
    "fp16": 0.05,
}
"""Between a recorded probability and a computed one."""

Rows = npt.NDArray[np.float32]
"""(images, classes), probabilities."""
Images = npt.NDArray[np.uint8]


def images() -> Images:
    """uint8 (COUNT, 32, 32, 3): coloured waves of growing frequency. Never to be changed."""
    y, x = np.mgrid[:SIDE, :SIDE]
    made = [
        np.stack([8 * x * n + 3 * y, x * y * n, 5 * (SIDE - y) * n + x], axis=-1) % 256
        for n in range(1, COUNT + 1)
    ]
    whole: Images = np.stack(made).astype(np.uint8)
    return whole


def repeated(whole: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
    """The first `count` of what is in `whole`, over and over again."""
    array = np.asarray(whole)
    return np.resize(array, (count, *array.shape[1:]))


def check(rows: Rows, recorded: npt.NDArray[np.float64], precision: PrecisionName) -> None:
    """Raises BadModel where a row differs from what was recorded for it."""
    differences = np.abs(rows - recorded).max(axis=1)
    worst = int(differences.argmax())
    if not differences[worst] <= MAY_DIFFER[precision]:  # a NaN differs as well
        raise BadModel(
            f"the network computes something else than when it was added: in {precision}, probe "
            f"{worst % COUNT + 1} differs by {differences[worst]:.2g} where "
            f"{MAY_DIFFER[precision]:g} is allowed. Compare the manifest with where it came from; "
            "if it is whole, this machine computes wrongly"
        )


def record(rows: Rows) -> tuple[tuple[float, ...], ...]:
    """As a manifest holds them."""
    return tuple(tuple(round(float(value), 7) for value in row) for row in rows)
