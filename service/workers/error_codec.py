"""Encodes exceptions of the engine process, so that front ends can raise the same exceptions.

A front end is a process that serves HTTP.
"""

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
from service.workers.frames import BadFrame, Error


class Unexpected(Exception):
    """Replaces an exception without a code. The engine process logs the original exception."""


KINDS: Final[dict[int, type[Exception]]] = {
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
"""Exceptions by their codes in frames."""
_CODES: Final = {kind: code for code, kind in KINDS.items()}


def encode(error: Exception) -> Error:
    """Encode an exception. An exception without a code becomes `Unexpected`.

    `retry_after` is limited to the range from 0 to `MAX_RETRY_AFTER` seconds.
    """
    code, detail = _CODES.get(type(error), _CODES[Unexpected]), str(error)
    if isinstance(error, EngineFailed) and error.__cause__ is not None:
        detail = f"{detail}: {error.__cause__!r}"
    retry_after = min(max(0.0, getattr(error, "retry_after", 0.0)), MAX_RETRY_AFTER)
    return Error(code, retry_after, detail.encode(errors="replace").decode())


def decode(error: Error) -> Exception:
    """Return the exception that `error` describes. Raises BadFrame if the code is unknown."""
    kind = KINDS.get(error.code)
    if kind is None:
        raise BadFrame(f"unknown error code {error.code}")
    if issubclass(kind, Refused):
        return kind(error.detail, error.retry_after)
    if issubclass(kind, RateLimited):
        return kind(error.retry_after)
    return kind(error.detail)
