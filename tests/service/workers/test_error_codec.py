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
def test_all_of_them(kind: type[Exception]) -> None:
    """Class, words and seconds to wait."""
    if issubclass(kind, RateLimited):
        error: Exception = kind(0.25)
    else:
        error = kind("words", 0.25) if issubclass(kind, Refused) else kind("words")
    found = crossed(error)
    assert type(found) is kind and str(found) == str(error)
    if isinstance(found, (Refused, RateLimited)):
        assert found.retry_after == 0.25


def test_what_nobody_foresaw() -> None:
    """Is told as that, by what it said."""
    found = crossed(ZeroDivisionError("by zero"))
    assert type(found) is Unexpected and str(found) == "by zero"


def test_what_lies_behind() -> None:
    """An engine's failure says what it was."""
    error = EngineFailed("the engine failed on this item")
    error.__cause__ = MemoryError("full")
    assert str(crossed(error)) == "the engine failed on this item: MemoryError('full')"


@pytest.mark.parametrize(
    ("seconds", "sent"), [(math.inf, MAX_RETRY_AFTER), (math.nan, 0.0), (-1.0, 0.0)]
)
def test_waits_are_within_bounds(seconds: float, sent: float) -> None:
    """A wait that is not a number, negative or too long is brought within bounds: a frame with it
    would end the link for all."""
    found = crossed(DeadlineUnreachable("late", seconds))
    assert isinstance(found, DeadlineUnreachable) and found.retry_after == sent


def test_words_that_are_no_text() -> None:
    """Such as a file's name that is no UTF-8: they arrive as well as they can."""
    assert str(crossed(EngineFailed("a\udcffb"))) == "a?b"


def test_an_unknown_reason() -> None:
    with pytest.raises(BadFrame):
        decode(Error(99, 0.0, ""))
