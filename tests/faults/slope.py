"""Fits the slope of a series, with an interval that is right for correlated samples.

Ordinary least squares treats each sample as independent, which two memory samples within a second
are not. So the series is cut into `BLOCKS` blocks, and their means are fitted: within a block
samples may be correlated, and means of long blocks hardly are ("batch means", Law and Kelton,
Simulation Modeling and Analysis). The interval is Student's, with BLOCKS - 2 degrees of freedom.

For values that rise and fall with the load, and would stay high after a leak, the minimum of each
block is fitted instead of its mean, because other work on the machine changes the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCKS = 20
STUDENT = 2.101
"""Quantile of Student's distribution for a 95 % interval with 18 degrees of freedom."""


@dataclass(frozen=True)
class Slope:
    """Units per hour."""

    value: float
    low: float
    high: float


Series = Sequence[float] | NDArray[np.float64]
OfBlock = Callable[[NDArray[np.float64]], Any]
"""Reduces the values of a block to one number."""


def slope(seconds: Series, values: Series, of_block: OfBlock = np.mean) -> Slope:
    """Fits a series with at least two samples per block. Each block counts as its `of_block`.
    Raises ValueError if there are fewer samples."""
    if len(values) < 2 * BLOCKS:
        raise ValueError(f"{len(values)} samples, where {2 * BLOCKS} are the least")
    x = np.array([block.mean() for block in np.array_split(np.asarray(seconds), BLOCKS)]) / 3600
    y = np.array([of_block(block) for block in np.array_split(np.asarray(values, float), BLOCKS)])
    away = x - x.mean()
    value = float(away @ y / (away @ away))
    rest = y - y.mean() - value * away
    error = float(np.sqrt(rest @ rest / (BLOCKS - 2) / (away @ away)))
    return Slope(value, value - STUDENT * error, value + STUDENT * error)
