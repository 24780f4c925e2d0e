"""Tests the encoding of HTTP/2 frames and the search for their heads."""

from __future__ import annotations

import pytest

from service.grpc.http2_frames import (
    CONTINUATION,
    DATA,
    END_STREAM,
    HEADERS,
    FrameHeads,
    field,
    frame,
    goaway,
)

EXPECTED = [(HEADERS, 4, 1), (DATA, END_STREAM, 1), (CONTINUATION, 0, 3)]
PAYLOADS = (bytes(30), b"", b"y")
SENT = b"".join(frame(*head, data) for head, data in zip(EXPECTED, PAYLOADS, strict=True))


@pytest.mark.parametrize("size", range(1, len(SENT) + 1))
def test_frame_heads_finds_heads_in_pieces_of_any_size(size: int) -> None:
    """All heads are found, however the stream is cut into pieces."""
    heads = FrameHeads()
    found: list[tuple[int, int, int]] = []
    for at in range(0, len(SENT), size):
        found += heads.feed(SENT[at : at + size])
    assert found == EXPECTED and heads.at_frame_boundary


@pytest.mark.parametrize("cut", [1, 8, 9, 20, 40])
def test_frame_heads_is_not_at_a_boundary_within_a_frame(cut: int) -> None:
    """An incomplete head or payload is not a frame boundary."""
    heads = FrameHeads()
    list(heads.feed(SENT[:cut]))
    assert not heads.at_frame_boundary


def test_field_is_a_literal_without_indexing() -> None:
    """A field is encoded as in RFC 7541, C.2.2, but with a new name and without compression."""
    assert field("name", "42") == b"\x00\x04name\x0242"


def test_goaway_lets_clients_repeat_their_requests() -> None:
    """GOAWAY names 0 as the last stream, so no request counts as processed."""
    assert goaway("why") == b"\x00\x00\x0b\x07\x00\x00\x00\x00\x00" + bytes(4) + b"\0\0\0\x0bwhy"
