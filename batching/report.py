"""What a batch and an answer tell about themselves. Plain data; durations are seconds.

Nobody changes them once they are made. To have Python see to that, by `frozen`, would make each
several times as dear.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Out = TypeVar("Out")


class Outcomes(list[Out]):
    """What `infer` may give in place of any other sequence: the outcomes, and when the engine was
    done with them, by the batcher's clock. An event loop that is at work hears of it later, and its
    own delay, of two lanes at once, would pass for an engine that has become slow."""

    def __init__(self, outcomes: Iterable[Out], done: float) -> None:
        super().__init__(outcomes)
        self.done = done


@dataclass(slots=True)
class Answer(Generic[Out]):
    """One item's outcome, and where its time went."""

    value: Out
    queue_seconds: float
    infer_seconds: float
    batch_size: int
    bucket: int


@dataclass(slots=True)
class BatchReport:
    """What happened to one batch, from the moment it was closed.

    `size` is what was sent at first and `bucket` what the engine padded that to. `predicted` and
    `infer_seconds` run from the hand-over to the last outcome; with an earlier batch still in
    flight both contain the wait for it. `retries` counts the further calls of the engine that
    isolated a fault; `gone` the items whose callers had left or run out of time by the end.
    """

    size: int
    bucket: int
    oldest_queue_seconds: float
    infer_seconds: float
    predicted_seconds: float
    answered: int
    failed: int
    gone: int
    retries: int
    out_of_memory: bool
