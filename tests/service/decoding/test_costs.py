"""Costs: estimates that fit images, and that no image can spoil."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.costs import SAMPLE_SECONDS, SECONDS, Costs, work
from service.decoding.image import BYTES_PER_PIXEL

kinds = st.sampled_from([*SECONDS])
images = st.tuples(
    kinds,
    st.integers(0, 64_000_000),
    st.integers(0, 10_000_000),
    st.one_of(st.floats(0, 100), st.sampled_from([-1.0, math.nan, math.inf])),
)


@pytest.mark.parametrize(
    ("kind", "pixels", "size", "seconds"),
    [
        ("JPEG", 100_010, 17_154, 0.00052),
        ("JPEG", 100_010, 78_047, 0.00094),
        ("JPEG", 12_000_000, 470_044, 0.00817),
        ("JPEG", 12_000_000, 7_227_844, 0.06135),
        ("JPEG", 63_993_936, 3_512_658, 0.05249),
        ("JPEG progressive", 100_010, 15_972, 0.00101),
        ("JPEG progressive", 12_000_000, 406_881, 0.03854),
        ("JPEG progressive", 12_000_000, 6_776_511, 0.23191),
        ("JPEG progressive", 63_993_936, 17_238_430, 1.06642),
        ("PNG", 100_010, 231_924, 0.00184),
        ("PNG", 12_000_000, 9_358_278, 0.41056),
        ("PNG", 63_993_936, 66_476_145, 0.98959),
        ("PNG palette", 12_000_000, 874_864, 0.03730),
        ("PNG palette", 12_000_000, 4_384_233, 0.06478),
        ("WebP", 999_364, 53_806, 0.00729),
        ("WebP", 12_000_000, 5_783_952, 0.38036),
        ("WebP", 63_993_936, 1_218_410, 0.95644),
        ("WebP lossless", 100_010, 144_682, 0.00187),
        ("WebP lossless", 63_993_936, 49_611_336, 2.15345),
        ("BMP", 100_010, 300_358, 0.00036),
        ("BMP", 63_993_936, 191_988_790, 0.25723),
        ("GIF", 100_010, 64_622, 0.00095),
        ("GIF", 12_000_000, 1_290_050, 0.04390),
    ],
)
def test_estimates_of_ordinary_images(kind: str, pixels: int, size: int, seconds: float) -> None:
    """Within a factor of 2 of what was measured, on one machine, for soft and for noisy images."""
    estimate = Costs().estimate(kind, pixels, size)
    assert seconds / 2 < estimate < seconds * 2


@given(st.lists(images, max_size=200), kinds, st.integers(0, 64_000_000), st.integers(0, 10**7))
def test_no_images_change_estimates_beyond_the_bounds(
    learned: list[tuple[str, int, int, float]], kind: str, pixels: int, size: int
) -> None:
    """Whatever images took, estimates stay between 1/4 of and 4 times those at start, and finite.
    Small images and impossible times change nothing, and no image changes another kind's."""
    costs, at_start = Costs(), Costs().estimate(kind, pixels, size)
    for name, its_pixels, its_size, seconds in learned:
        before = costs.estimate(kind, pixels, size)
        costs.learn(name, its_pixels, its_size, seconds)
        after = costs.estimate(kind, pixels, size)
        assert at_start / 4 * 0.999 <= after <= at_start * 4 * 1.001
        assert 1 / 1.04 < after / before < 1.04
        if name != kind or its_pixels < 100_000 or not 0 < seconds < math.inf:
            assert after == before


@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_the_bounds_can_be_reached(seconds: float) -> None:
    """A machine that is slower or faster than at start is learned as far as that."""
    costs = Costs()
    for _ in range(100):
        costs.learn("PNG", 1_000_000, 1_000_000, seconds)
    factor = costs.estimate("PNG", 10, 10) / Costs().estimate("PNG", 10, 10)
    assert factor == pytest.approx(4 if seconds > 1 else 1 / 4)


@pytest.mark.parametrize("slower", [0.5, 1, 3])
def test_estimates_follow_the_machine(slower: float) -> None:
    """Images that all take `slower` times their estimate are estimated right in the end."""
    costs = Costs()
    seconds = slower * costs.estimate("JPEG", 12_000_000, 3_000_000)
    for _ in range(200):
        costs.learn("JPEG", 12_000_000, 3_000_000, seconds)
    assert costs.estimate("JPEG", 12_000_000, 3_000_000) == pytest.approx(seconds, rel=0.01)


def test_metadata_is_not_work() -> None:
    """A long comment in a tiny image is not estimated as if it were pixels."""
    assert work("JPEG", 1, 10_000_000) < 100
    assert Costs().estimate("JPEG", 0, 10_000_000) < 0.001
    assert work("PNG", 100, 10_000_000) == 100


def test_estimates_scale_with_what_the_sample_took() -> None:
    """A machine that takes twice as long for the sample takes twice as long for pixels."""
    twice = Costs(2 * SAMPLE_SECONDS).estimate("PNG", 10_000_000, 1)
    assert twice == pytest.approx(2 * Costs().estimate("PNG", 10_000_000, 1), rel=0.01)


def test_a_sample_that_makes_no_sense_is_bounded() -> None:
    """A template that was interrupted while it timed the sample spoils no estimate for good."""
    at_most = Costs(1e9).estimate("PNG", 10_000_000, 1)
    assert at_most == pytest.approx(8 * Costs().estimate("PNG", 10_000_000, 1), rel=0.01)


def test_every_kind_of_image_has_its_cost() -> None:
    """The kinds that headers tell apart are those whose costs are known."""
    assert SECONDS.keys() == BYTES_PER_PIXEL.keys()
