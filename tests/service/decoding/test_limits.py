"""How many decoders fit into a given amount of memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.image import BYTES_PER_PIXEL
from service.decoding.limits import (
    EXPENSIVE_MEMORY,
    MIN_EXPENSIVE_MEMORY,
    ORDINARY_MEMORY,
    limits,
)

MIB = 2**20


@given(st.integers(1, 256), st.integers(300 * MIB, 2**40))
def test_limits_fit_into_the_memory(processes: int, memory: int) -> None:
    """Whatever the settings, the sum of all decoders is within the memory, and there is at least
    one of each kind."""
    found = limits(processes, memory, 2.0)
    assert found.memory <= memory
    assert 1 <= found.expensive <= found.ordinary <= processes
    assert MIN_EXPENSIVE_MEMORY <= found.expensive_memory <= EXPENSIVE_MEMORY


@given(st.integers(1, 64), st.integers(300 * MIB, 2**36), st.integers(0, 2**36))
def test_more_memory_never_means_fewer_decoders(processes: int, memory: int, more: int) -> None:
    """Nor less memory for each."""
    small, large = limits(processes, memory, 2.0), limits(processes, memory + more, 2.0)
    assert small.ordinary <= large.ordinary
    if small.ordinary == large.ordinary:
        assert small.expensive <= large.expensive
        assert small.expensive_memory <= large.expensive_memory


@pytest.mark.parametrize(
    ("mebibytes", "ordinary", "expensive", "each"),
    [(768, 2, 1, 544), (600, 2, 1, 376), (350, 1, 1, 226), (12_288, 2, 2, 544)],
)
def test_limits_by_example(mebibytes: int, ordinary: int, expensive: int, each: int) -> None:
    """Half of a container of 1,536 MiB; of smaller ones; of a machine."""
    found = limits(2, mebibytes * MIB, 2.0)
    assert (found.ordinary, found.expensive) == (ordinary, expensive)
    assert found.expensive_memory // MIB == each


def test_limits_reject_too_little_memory() -> None:
    """The message says how much is needed at least."""
    least = ORDINARY_MEMORY + MIN_EXPENSIVE_MEMORY + 36 * MIB
    with pytest.raises(ValueError, match=f"at least {least // MIB} MiB are needed"):
        limits(2, 200 * MIB, 2.0)


def test_images_of_64_megapixels_fit_where_their_memory_does() -> None:
    """All but WebP, whose decoder needs 14 bytes per pixel: 38 megapixels."""
    found = limits(2, 768 * MIB, 2.0)
    most = {kind: found.most_pixels(kind) for kind in BYTES_PER_PIXEL}
    assert {kind for kind, pixels in most.items() if pixels < 64_000_000} == {
        "WebP",
        "WebP lossless",
    }
    assert most["WebP"] > 38_000_000


def test_limits_count_descriptors() -> None:
    """Three for each decoder, and those of one that is started."""
    assert limits(16, 10_500 * MIB, 2.0).descriptors == 3 * (16 + 15) + 8
