"""Dynamic micro-batching: items that arrive at about the same time are computed together.

Uses the standard library only and knows neither HTTP nor tensors. `Batcher` is the entry point.
`policy` holds the rules; `latency` and `timeline` predict how long the engine takes.
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
from batching.report import Answer, BatchReport

__all__ = [
    "Answer",
    "BatchReport",
    "Batcher",
    "DeadlineUnreachable",
    "Draining",
    "EngineDead",
    "EngineFailed",
    "LatencyTable",
    "QueueFull",
    "Refused",
    "on_error",
    "reject",
]
