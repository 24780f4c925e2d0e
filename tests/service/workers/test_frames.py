"""Frames: what is written is read, in whatever pieces, and what is no frame is refused."""

from __future__ import annotations

import contextlib
import math
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.workers import frames
from service.workers.frames import (
    ANSWER,
    BOUNDS,
    CALL,
    CANCEL,
    ERROR,
    IMAGE_BYTES,
    MODEL,
    RESULT,
    STATE,
    SUBMIT,
    Answer,
    BadFrame,
    Error,
    Frame,
    FrameReader,
)

HEAD = struct.Struct("=IBQ")
numbers = st.integers(0, 2**64 - 1)
seconds = st.floats(0, 1e9)
counts = st.integers(0, 2**32 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
rows = st.lists(st.binary(min_size=4, max_size=4), max_size=12).map(b"".join)
contents = st.dictionaries(texts, st.integers(-(2**53), 2**53) | texts | st.none(), max_size=4)

said = st.one_of(
    st.tuples(st.just("submit"), numbers, seconds, st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("cancel"), numbers),
    st.tuples(st.just("answer"), numbers, st.builds(Answer, seconds, counts, counts, counts, rows)),
    st.tuples(st.just("error"), numbers, st.builds(Error, st.integers(0, 255), seconds, texts)),
    st.tuples(st.just("message"), st.sampled_from([CALL, RESULT, STATE, MODEL]), numbers, contents),
)


def written(what: tuple) -> bytes:  # type: ignore[type-arg]  # one of five shapes, see `said`
    name, *arguments = what
    if name == "submit":
        arguments[2] = arguments[2] * (IMAGE_BYTES // len(arguments[2])) + bytes(
            IMAGE_BYTES % len(arguments[2])
        )
    frame: bytes = getattr(frames, name)(*arguments)
    return frame


def meant(what: tuple, frame: Frame) -> None:  # type: ignore[type-arg]
    """`frame` says `what`."""
    name, *arguments = what
    if name == "submit":
        assert (frame.kind, frame.number) == (SUBMIT, arguments[0])
        deadline, image = frames.read_submit(frame.body)
        assert deadline == arguments[1] and image.startswith(arguments[2])
    elif name == "cancel":
        assert frame == (CANCEL, arguments[0], b"")
    elif name == "answer":
        assert (frame.kind, frame.number) == (ANSWER, arguments[0])
        assert frames.read_answer(frame.body) == arguments[1]
    elif name == "error":
        assert (frame.kind, frame.number) == (ERROR, arguments[0])
        read, sent = frames.read_error(frame.body), arguments[1]
        assert read[:2] == sent[:2]
        assert read.detail.encode()[:1000] == sent.detail.encode()[:1000]
    else:
        assert (frame.kind, frame.number) == tuple(arguments[:2])
        assert frames.read_message(frame.body) == arguments[2]


@given(st.lists(said, max_size=5), st.data())
def test_frames_round_trip(what: list[tuple], data: st.DataObject) -> None:  # type: ignore[type-arg]
    """Frames are read as they were written, in the same order, in pieces of any size."""
    stream = b"".join(written(one) for one in what)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, found = FrameReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert len(found) == len(what)
    for one, frame in zip(what, found, strict=True):
        meant(one, frame)


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_frame_reader_accepts_any_bytes(pieces: list[bytes]) -> None:
    """Any bytes are frames within their bounds, or raise BadFrame."""
    reader = FrameReader()
    try:
        for piece in pieces:
            for frame in reader.feed(piece):
                assert BOUNDS[frame.kind][0] <= len(frame.body) <= BOUNDS[frame.kind][1]
    except BadFrame:
        pass


READERS = {
    SUBMIT: frames.read_submit,
    ANSWER: frames.read_answer,
    ERROR: frames.read_error,
    CALL: frames.read_message,
    RESULT: frames.read_message,
    STATE: frames.read_message,
    MODEL: frames.read_message,
}


@given(st.sampled_from(sorted(READERS)), st.binary(max_size=64), st.integers(0, 4000))
def test_body_readers_accept_any_body(kind: int, start: bytes, length: int) -> None:
    """A body of an allowed length is read, or raises BadFrame."""
    body = start.ljust(length, b"\xff")
    if not BOUNDS[kind][0] <= len(body) <= BOUNDS[kind][1]:
        return
    with contextlib.suppress(BadFrame):
        READERS[kind](body)


@pytest.mark.parametrize("kind", sorted(BOUNDS))
def test_frame_reader_checks_the_length_in_the_head(kind: int) -> None:
    """A head with a length out of bounds is rejected before its body arrives."""
    fewest, most = BOUNDS[kind]
    for length in {fewest, most}:
        assert FrameReader().feed(HEAD.pack(length, kind, 1)) == (
            [(kind, 1, b"")] if length == 0 else []
        )
    wrong = [most + 1, 2**32 - 1] + ([fewest - 1] if fewest else [])
    for length in wrong:
        with pytest.raises(BadFrame, match=f"kind {kind}"):
            FrameReader().feed(HEAD.pack(length, kind, 1))


@pytest.mark.parametrize("kind", [0, 9, 255])
def test_frame_reader_rejects_unknown_kinds(kind: int) -> None:
    """A frame of an unknown kind is rejected, whatever its length."""
    for length in 0, 1, 100:
        with pytest.raises(BadFrame):
            FrameReader().feed(HEAD.pack(length, kind, 1))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (SUBMIT, struct.pack("=d", math.nan) + bytes(IMAGE_BYTES)),
        (SUBMIT, struct.pack("=d", math.inf) + bytes(IMAGE_BYTES)),
        (ANSWER, struct.pack("=dIII", 0.1, 1, 1, 1) + b"abc"),
        (ERROR, struct.pack("=Bd", 1, -1.0)),
        (ERROR, struct.pack("=Bd", 1, math.nan)),
        (ERROR, struct.pack("=Bd", 1, math.inf)),
        (CALL, b"[]"),
        (RESULT, b"{"),
        (STATE, b"\xff\xfe"),
        (STATE, b"{" * 1000),
    ],
)
def test_body_readers_reject_invalid_bodies(kind: int, body: bytes) -> None:
    """Numbers that are not finite, cut rows, and JSON that is not an object are rejected."""
    with pytest.raises(BadFrame):
        READERS[kind](body)


def test_error_cuts_a_long_detail() -> None:
    """A long detail is cut to the bounds of the frame, also within a character."""
    told = Error(1, 0.5, "é" * 2000 + "x")
    (frame,) = FrameReader().feed(frames.error(7, told))
    assert frames.read_error(frame.body).detail == "é" * 512


def test_message_rejects_long_content() -> None:
    """A message that is too long raises ValueError where it is written."""
    with pytest.raises(ValueError, match="at most"):
        frames.message(RESULT, 1, {"text": "x" * 2**20})


def test_frame_reader_joins_small_pieces_once() -> None:
    """A large frame in pieces of one byte is joined once."""
    stream = frames.message(STATE, 0, {"text": "x" * 1_000_000})
    started = time.process_time()
    reader = FrameReader()
    found = [frame for at in range(len(stream)) for frame in reader.feed(stream[at : at + 1])]
    assert len(found) == 1
    assert time.process_time() - started < 5  # seconds; quadratic takes minutes
