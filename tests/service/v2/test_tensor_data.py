"""Tests that tensor data is decoded exactly, in pieces, and without extra memory."""

from __future__ import annotations

import base64
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadInference
from service.v2.tensor_data import PIECE, base64_pieces, denormalized, whole_pixels
from tests.fakes import MODEL


@given(st.binary(max_size=100))
def test_base64_decodes_text_and_views(data: bytes) -> None:
    """Text and views of bytes decode to the same data."""
    text = base64.b64encode(data)
    assert b"".join(base64_pieces(text.decode())) == data
    assert b"".join(base64_pieces(memoryview(text))) == data


@pytest.mark.parametrize("size", [PIECE // 4 * 3 - 1, PIECE // 4 * 3, PIECE // 4 * 3 + 1, 10**6])
def test_base64_decodes_in_bounded_pieces(size: int) -> None:
    """The pieces are the data in order, and none comes from more than `PIECE` characters."""
    data = os.urandom(size)
    pieces = list(base64_pieces(base64.b64encode(data).decode()))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= PIECE // 4 * 3


def test_base64_is_freed_as_it_is_decoded() -> None:
    """A text and its decoded data together take no more memory than the text."""
    text = base64.b64encode(os.urandom(12 * PIECE))
    tracemalloc.start()
    try:
        pieces = list(base64_pieces(memoryview(text)))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(map(len, pieces)) == 12 * PIECE
    assert held < len(text) * 0.76 and peak < len(text) + 2 * PIECE


@pytest.mark.parametrize(
    "text",
    ["a", "a===", "aGk", "aGk=aGk=", "aG k", "a-_=", "äöü=", "aGk=\n", "A" * (PIECE - 1) + "=AAAA"],
)
def test_base64_rejects_invalid_text(text: str) -> None:
    """Anything but base64 of RFC 4648 with padding at the end is rejected."""
    with pytest.raises(BadInference, match="base64"):
        list(base64_pieces(text))


@pytest.mark.parametrize(
    ("element", "accepted"), [(0, True), (255, True), (-1, False), (256, False)]
)
def test_whole_pixels_accept_0_to_255(element: int, accepted: bool) -> None:
    """Elements outside the range of UINT8 are rejected."""
    numbers = np.full((1, 32, 32, 3), element, np.float64)
    if accepted:
        assert (whole_pixels(numbers) == element).all() and whole_pixels(numbers).dtype == np.uint8
    else:
        with pytest.raises(BadInference, match="0 to 255"):
            whole_pixels(numbers)


@pytest.mark.parametrize(("offset", "accepted"), [(0.0, True), (0.019, True), (0.021, False)])
def test_denormalized_tolerates_rounding_only(offset: float, accepted: bool) -> None:
    """Values within `TOLERANCE` of a normalized 8-bit pixel are accepted, and others rejected."""
    pixels = np.arange(3072, dtype=np.uint8).reshape(1, 32, 32, 3)
    mean, std = np.array(MODEL.normalisation.mean), np.array(MODEL.normalisation.std)
    numbers = (((pixels % 255 + offset) / 255 - mean) / std).transpose(0, 3, 1, 2)
    if accepted:
        assert np.array_equal(denormalized(numbers, MODEL.normalisation), pixels % 255)
    else:
        with pytest.raises(BadInference, match="8-bit"):
            denormalized(numbers, MODEL.normalisation)
