"""Dynamic micro-batching: items that arrive at about the same time are computed together.

This package uses only the standard library and depends on neither HTTP nor tensors. `Batcher` is
the entry point. `policy` contains the batching rules. `latency` and `timeline` predict how long the
engine takes; the engine is the function that computes a batch.
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
