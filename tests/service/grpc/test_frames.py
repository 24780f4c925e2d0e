"""The parts of HTTP/2 that a relay writes and reads."""

from __future__ import annotations

import pytest

from service.grpc.frames import CONTINUATION, DATA, END_STREAM, HEADERS, Heads, field, frame, goaway

FOUND = [(HEADERS, 4, 1), (DATA, END_STREAM, 1), (CONTINUATION, 0, 3)]
PAYLOADS = (bytes(30), b"", b"y")
SENT = b"".join(frame(*found, data) for found, data in zip(FOUND, PAYLOADS, strict=True))


@pytest.mark.parametrize("size", range(1, len(SENT) + 1))
def test_heads_are_found_in_pieces_of_any_size(size: int) -> None:
    heads = Heads()
    found: list[tuple[int, int, int]] = []
    for at in range(0, len(SENT), size):
        found += heads.feed(SENT[at : at + size])
    assert found == FOUND and heads.between


@pytest.mark.parametrize("cut", [1, 8, 9, 20, 40])
def test_heads_are_not_between_frames_within_one(cut: int) -> None:
    heads = Heads()
    list(heads.feed(SENT[:cut]))
    assert not heads.between


def test_field_is_a_literal_without_indexing() -> None:
    """As in RFC 7541, C.2.2, but with a new name and without compression."""
    assert field("name", "42") == b"\x00\x04name\x0242"


def test_goaway_lets_clients_repeat_their_requests() -> None:
    assert goaway("why") == b"\x00\x00\x0b\x07\x00\x00\x00\x00\x00" + bytes(4) + b"\0\0\0\x0bwhy"
