"""Ratios of measurements within a round, with their standard error."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Mean of the ratios of several rounds. A machine that slows down for all changes no ratio."""

    mean: float
    error: float
    """Standard error of the mean."""

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
        """Divides the measurements of each round. There must be at least two rounds."""
        ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
        return cls(statistics.mean(ratios), statistics.stdev(ratios) / len(ratios) ** 0.5)
