"""Does a series grow? The slope of its straight line, with an interval that is honest for samples
that resemble their neighbours.

Ordinary least squares on single samples takes each for news; memory that was sampled twice a
second is not. So the series is cut into `BLOCKS` blocks, of which the means are fitted: within a
block samples may depend on each other as they like, and between means of long blocks little is
left of it ("batch means", Law and Kelton, Simulation Modeling and Analysis). The interval is
Student's, with BLOCKS - 2 degrees of freedom.

Of what comes and goes with the load, and would stay if it leaked, the least of each block is fitted
instead: others who keep the machine busy have more of it come and go, and none stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCKS = 20
STUDENT = 2.101
"""Half of 95 % on either side, at 18 degrees of freedom."""


@dataclass(frozen=True)
class Slope:
    """Units an hour."""

    value: float
    low: float
    high: float


Series = Sequence[float] | NDArray[np.float64]
OfBlock = Callable[[NDArray[np.float64]], Any]
"""What a block of values counts as: one number."""


def slope(seconds: Series, values: Series, of_block: OfBlock = np.mean) -> Slope:
    """Of at least two samples a block, each of which counts as its `of_block`. Raises ValueError
    for fewer."""
    if len(values) < 2 * BLOCKS:
        raise ValueError(f"{len(values)} samples, where {2 * BLOCKS} are the least")
    x = np.array([block.mean() for block in np.array_split(np.asarray(seconds), BLOCKS)]) / 3600
    y = np.array([of_block(block) for block in np.array_split(np.asarray(values, float), BLOCKS)])
    away = x - x.mean()
    value = float(away @ y / (away @ away))
    rest = y - y.mean() - value * away
    error = float(np.sqrt(rest @ rest / (BLOCKS - 2) / (away @ away)))
    return Slope(value, value - STUDENT * error, value + STUDENT * error)
