"""Computes the mean ratio of two measurements over several rounds, and its standard error."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Mean of the ratios of several rounds.

    If the machine is slower during a round, both measurements of the round are slower. So their
    ratio does not change.
    """

    mean: float
    """Mean of the ratios."""
    error: float
    """Standard error of the mean."""

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
        """Returns the mean ratio of the measurements. At least two rounds are required."""
        ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
        return cls(statistics.mean(ratios), statistics.stdev(ratios) / len(ratios) ** 0.5)
