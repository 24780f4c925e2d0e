"""What the markers of a JPEG tell."""

from __future__ import annotations

import pytest

from service.decoding.jpeg import frame, has_too_many_parts

SCAN = b"\xff\xda\x00\x02"


@pytest.mark.parametrize(
    ("scans", "pixels", "too_many"),
    [
        (1, 64_000_000, False),
        (20, 64_000_000, False),
        (21, 64_000_000, True),
        (64, 20_000_000, False),
        (64, 20_100_000, True),
        (64, 1, False),
        (65, 1, True),
    ],
)
def test_scans_are_bounded_by_the_pixels_they_visit(
    scans: int, pixels: int, too_many: bool
) -> None:
    """64 at most, and 20 times 64 megapixels in all."""
    assert has_too_many_parts(b"\xff\xd8" + scans * SCAN + b"\xff\xd9", pixels) == too_many


@pytest.mark.parametrize(("segments", "too_many"), [(1000, False), (1001, True)])
def test_segments_are_bounded(segments: int, too_many: bool) -> None:
    """A thousand at most."""
    data = b"\xff\xd8" + segments * b"\xff\xe1\x00\x02" + b"\xff\xd9"
    assert has_too_many_parts(data, 1) == too_many


@pytest.mark.parametrize(("segments", "is_found"), [(39, True), (42, False)])
@pytest.mark.parametrize("junk", [b"\xff", b"\0", b"\xff\0"])
def test_junk_between_segments_is_bounded(segments: int, is_found: bool, junk: bytes) -> None:
    """About 4 KiB in all: a search takes time for each byte."""
    fill = (junk * 100)[:100]
    size = b"\xff\xc0\x00\x0b\x08\x00\x20\x00\x10\x01"
    data = b"\xff\xd8" + segments * (fill + b"\xff\xe1\x00\x02") + size
    assert frame(data) == ((16, 32, True) if is_found else None)


def test_pixels_are_not_junk() -> None:
    """However long a scan is, the segments behind it are found."""
    scan = SCAN + bytes(5000) + b"\xff\xc4\x00\x02"
    assert not has_too_many_parts(b"\xff\xd8" + 64 * scan, 1)
    assert has_too_many_parts(b"\xff\xd8" + 65 * scan, 1)
