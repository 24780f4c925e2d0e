"""Plain data about one answer and about one batch. Durations are in seconds.

Instances are not changed after they are made. The classes are not `frozen`, because creating a
frozen instance takes several times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Out = TypeVar("Out")


@dataclass(slots=True)
class Answer(Generic[Out]):
    """The result for one item, and how long the item waited and was computed."""

    value: Out
    queue_seconds: float
    """From arrival until the item's batch was handed to the engine."""
    infer_seconds: float
    """From then until the event loop received the results."""
    batch_size: int
    """Items in the batch."""
    bucket: int
    """Size that the engine padded the batch to."""


@dataclass(slots=True)
class BatchReport:
    """What happened to one batch after it was formed."""

    size: int
    """Items in the batch as it was formed."""
    bucket: int
    """Size that the engine padded it to."""
    infer_seconds: float
    """From forming the batch to its last result. If an earlier batch was still in flight, this
    includes the wait for it."""
    predicted_seconds: float
    """Prediction of `infer_seconds`."""
    answered: int
    failed: int
    gone: int
    """Items whose callers had canceled or reached their deadline by the end."""
    retries: int
    """Additional calls of the engine, to isolate an error."""
    out_of_memory: bool
