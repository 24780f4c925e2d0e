"""Plain data about one answer and about one batch. Durations are in seconds.

Instances must not be modified. The classes are not `frozen`, because creating a frozen instance
takes several times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Out = TypeVar("Out")


@dataclass(slots=True)
class Answer(Generic[Out]):
    """The result for one item, its time in the queue, and the time that its batch took."""

    value: Out
    """Result that the engine returned for the item."""
    queue_seconds: float
    """Time from the item's arrival until its batch was submitted to the engine."""
    infer_seconds: float
    """Time from submitting the batch to the engine until the event loop received the results."""
    batch_size: int
    """Number of items in the batch."""
    bucket: int
    """Size that the engine padded the batch to."""


@dataclass(slots=True)
class BatchReport:
    """What happened to one batch after it was formed."""

    size: int
    """Number of items in the batch when it was formed."""
    bucket: int
    """Size that the engine padded the batch to."""
    infer_seconds: float
    """Time from forming the batch to its last result. If the engine was still running earlier
    batches, the time includes the wait for those batches."""
    predicted_seconds: float
    """Prediction of `infer_seconds`, made when the batch was formed."""
    answered: int
    """Number of items that were answered."""
    failed: int
    """Number of items that failed."""
    gone: int
    """Number of items whose caller canceled, or whose deadline passed, before the batch ended."""
    retries: int
    """Number of additional engine calls that were made to find the items that cause an error."""
    out_of_memory: bool
    """Whether the device ran out of memory while running the batch."""
