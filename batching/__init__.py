"""Dynamic micro-batching: items that arrive together are computed together.

Standard library only; knows neither HTTP nor tensors. `Batcher` is the way in; the rules behind
it live in `policy`, what it knows of the engine in `latency` and `timeline`.
"""

from batching.batcher import Batcher
from batching.completion import on_error, reject
from batching.errors import (
    DeadlineUnreachable,
    Draining,
    EngineDead,
    EngineFailed,
    QueueFull,
    Refused,
)
from batching.latency import LatencyTable
from batching.report import Answer, BatchReport, Outcomes

__all__ = [
    "Answer",
    "BatchReport",
    "Batcher",
    "DeadlineUnreachable",
    "Draining",
    "EngineDead",
    "EngineFailed",
    "LatencyTable",
    "Outcomes",
    "QueueFull",
    "Refused",
    "on_error",
    "reject",
]
