"""Exceptions as frames, and back: the front end raises what the engine's process raised."""

from __future__ import annotations

from typing import Final

from batching import DeadlineUnreachable, Draining, EngineFailed, QueueFull, Refused
from service.errors import NotReady
from service.workers.frames import BadFrame, Refusal

REASONS: Final[dict[int, type[Exception]]] = {
    1: QueueFull,
    2: DeadlineUnreachable,
    3: Draining,
    4: NotReady,
    5: TimeoutError,
    6: EngineFailed,
}
_NUMBERS: Final = {kind: number for number, kind in REASONS.items()}


def told(error: Exception) -> Refusal:
    """An exception that is none of `REASONS` is EngineFailed: it befell this item alone."""
    cause = error.__cause__
    detail = f"{error} ({cause!r})" if cause is not None else str(error)
    number = _NUMBERS.get(type(error))
    if number is None:
        return Refusal(_NUMBERS[EngineFailed], 0.0, repr(error))
    return Refusal(number, max(0.0, getattr(error, "retry_after", 0.0)), detail)


def meant(refusal: Refusal) -> Exception:
    """Raises BadFrame."""
    kind = REASONS.get(refusal.reason)
    if kind is None:
        raise BadFrame(f"a refusal for the reason {refusal.reason}, which is none")
    if issubclass(kind, Refused):
        return kind(refusal.detail, refusal.retry_after)
    return kind(refusal.detail)
