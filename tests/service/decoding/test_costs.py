"""Costs: estimates that fit images, and that no image can spoil."""

from __future__ import annotations

import pytest

from service.decoding.costs import SAMPLE_SECONDS, SECONDS, Costs, work
from service.decoding.image import BYTES_PER_PIXEL, EncodedImage


def of(kind: str, pixels: int, size: int) -> EncodedImage:
    """A square of so many pixels, more or less, in so many bytes."""
    side = max(1, round(pixels**0.5))
    return EncodedImage(bytes(size), kind, side, side, 2**40)


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
    estimate = Costs().estimate(of(kind, pixels, size))
    assert seconds / 2 < estimate < seconds * 2


@pytest.mark.parametrize(
    ("width", "height", "scans", "least"),
    [(2, 50_001, 1, 0.0005), (2, 50_001, 60, 0.04), (65_500, 1, 60, 0.05), (1, 1, 1, 0.0003)],
)
def test_blocks_and_scans_cost_what_they_cost(
    width: int, height: int, scans: int, least: float
) -> None:
    """Thin images have whole blocks, and each scan visits them all."""
    image = EncodedImage(scans * b"\xff\xda\x00\x02", "JPEG", width, height, 2**40)
    assert least <= Costs().estimate(image) < 5 * least + 0.001


def test_metadata_is_not_work() -> None:
    """A long comment in a tiny image is not estimated as if it were pixels."""
    assert Costs().estimate(of("JPEG", 1, 10_000_000)) < 0.001
    assert work(of("PNG", 100, 10_000_000)) == 32 * 32


def test_estimates_scale_with_what_the_sample_took() -> None:
    """A machine that takes twice as long for the sample takes twice as long for pixels."""
    image = of("PNG", 10_000_000, 1)
    assert Costs(2 * SAMPLE_SECONDS).estimate(image) == pytest.approx(
        2 * Costs().estimate(image), rel=0.01
    )


def test_a_sample_that_makes_no_sense_is_bounded() -> None:
    """A template that was interrupted while it timed the sample spoils no estimate for good."""
    image = of("PNG", 10_000_000, 1)
    assert Costs(1e9).estimate(image) == pytest.approx(8 * Costs().estimate(image), rel=0.01)


def test_every_kind_of_image_has_its_cost() -> None:
    """The kinds that headers tell apart are those whose costs are known."""
    assert SECONDS.keys() == BYTES_PER_PIXEL.keys()
