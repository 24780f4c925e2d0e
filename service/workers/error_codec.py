"""Exceptions as plain data, and back: the front end raises what the engine's process raised."""

from __future__ import annotations

from typing import Final

from batching import (
    DeadlineUnreachable,
    Draining,
    EngineDead,
    EngineFailed,
    QueueFull,
    Refused,
)
from service.errors import (
    BadImage,
    ChangeUnderWay,
    DecodeQueueFull,
    DecoderLost,
    DecodersDown,
    DecodersKilled,
    ImageTooExpensive,
    ImageTooLarge,
    LoadFailed,
    NotReady,
    RateLimited,
    UnknownModel,
    Unloaded,
)
from service.http.problems import MAX_RETRY_AFTER
from service.workers.frames import BadFrame, Refusal


class Unexpected(Exception):
    """Nobody foresaw this; it is in the log of the engine's process."""


REASONS: Final[dict[int, type[Exception]]] = {
    1: QueueFull,
    2: DeadlineUnreachable,
    3: Draining,
    4: NotReady,
    5: TimeoutError,
    6: EngineFailed,
    7: Unloaded,
    8: UnknownModel,
    9: ChangeUnderWay,
    10: LoadFailed,
    11: Unexpected,
    12: EngineDead,
    13: BadImage,
    14: ImageTooLarge,
    15: ImageTooExpensive,
    16: DecodeQueueFull,
    17: DecodersKilled,
    18: DecoderLost,
    19: DecodersDown,
}
_NUMBERS: Final = {kind: number for number, kind in REASONS.items()}


def told(error: Exception) -> Refusal:
    number, detail = _NUMBERS.get(type(error), _NUMBERS[Unexpected]), str(error)
    if isinstance(error, EngineFailed) and error.__cause__ is not None:
        detail = f"{detail}: {error.__cause__!r}"
    wait = min(max(0.0, getattr(error, "retry_after", 0.0)), MAX_RETRY_AFTER)
    return Refusal(number, wait, detail.encode(errors="replace").decode())


def meant(refusal: Refusal) -> Exception:
    """Raises BadFrame."""
    kind = REASONS.get(refusal.reason)
    if kind is None:
        raise BadFrame(f"a refusal for the reason {refusal.reason}, which is none")
    if issubclass(kind, Refused):
        return kind(refusal.detail, refusal.retry_after)
    if issubclass(kind, RateLimited):
        return kind(refusal.retry_after)
    return kind(refusal.detail)
