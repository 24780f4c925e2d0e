"""Exceptions that cross the socket: the same when they arrive."""

from __future__ import annotations

import math

import pytest

from batching import DeadlineUnreachable, EngineFailed, Refused
from service.errors import RateLimited
from service.http.problems import MAX_RETRY_AFTER
from service.workers import frames
from service.workers.error_codec import KINDS, Unexpected, decode, encode
from service.workers.frames import BadFrame, Error, FrameReader


def crossed(error: Exception) -> Exception:
    (frame,) = FrameReader().feed(frames.error(1, encode(error)))
    return decode(frames.read_error(frame.body))


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_error_codec_keeps_class_message_and_retry_after(kind: type[Exception]) -> None:
    """Each exception arrives with its class, message and `retry_after`."""
    if issubclass(kind, RateLimited):
        error: Exception = kind(0.25)
    else:
        error = kind("words", 0.25) if issubclass(kind, Refused) else kind("words")
    found = crossed(error)
    assert type(found) is kind and str(found) == str(error)
    if isinstance(found, (Refused, RateLimited)):
        assert found.retry_after == 0.25


def test_error_codec_sends_other_exceptions_as_unexpected() -> None:
    """An exception without a code arrives as Unexpected, with its message."""
    found = crossed(ZeroDivisionError("by zero"))
    assert type(found) is Unexpected and str(found) == "by zero"


def test_error_codec_adds_the_cause_of_an_engine_failure() -> None:
    """The message of EngineFailed includes its cause."""
    error = EngineFailed("the engine failed on this item")
    error.__cause__ = MemoryError("full")
    assert str(crossed(error)) == "the engine failed on this item: MemoryError('full')"


@pytest.mark.parametrize(
    ("seconds", "sent"), [(math.inf, MAX_RETRY_AFTER), (math.nan, 0.0), (-1.0, 0.0)]
)
def test_error_codec_limits_retry_after(seconds: float, sent: float) -> None:
    """A `retry_after` that is negative, too long or not a number is brought within bounds."""
    found = crossed(DeadlineUnreachable("late", seconds))
    assert isinstance(found, DeadlineUnreachable) and found.retry_after == sent


def test_error_codec_replaces_invalid_characters() -> None:
    """Characters that UTF-8 cannot encode, as in some file names, are replaced."""
    assert str(crossed(EngineFailed("a\udcffb"))) == "a?b"


def test_error_codec_rejects_unknown_codes() -> None:
    """An unknown code raises BadFrame."""
    with pytest.raises(BadFrame):
        decode(Error(99, 0.0, ""))
