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


def test_frame_tells_images_with_several_scans() -> None:
    """A baseline image whose first scan lacks components takes as much memory as a progressive
    one."""
    size = b"\x08\x00\x10\x00\x20"
    head = b"\xff\xd8\xff\xc0\x00\x11" + size + b"\x03" + 3 * b"\x01\x11\x00"
    one = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    all_components = b"\xff\xda\x00\x0c\x03" + 3 * b"\x01\x00" + b"\x00\x3f\x00"
    assert frame(head + all_components) == (32, 16, True)
    assert frame(head + one) == (32, 16, False)
    assert frame(head) == (32, 16, True), "the decoder says that the pixels are missing"


def test_has_too_many_parts_rejects_junk() -> None:
    """Bytes between segments that are not read could hide any number of scans."""
    start = b"\xff\xd8" + SCAN + b"\xff\xfe\x00\x02"
    hidden = start + bytes(5000) + 400 * SCAN + b"\xff\xd9"
    assert has_too_many_parts(hidden, 1_000_000)
    assert not has_too_many_parts(start + bytes(100) + SCAN + b"\xff\xd9", 1_000_000)


@pytest.mark.parametrize("code", [0x00, 0x01, 0x02, 0x05, 0xBF, 0xD0, 0xD7, 0xD8])
def test_codes_without_a_length_hide_no_scans(code: int) -> None:
    """Decoders skip such codes in a scan, and do not read a length after them."""
    hidden = b"\xff\xd8" + SCAN + bytes([0xFF, code, 0xFF, 0xFF]) + 65 * SCAN + b"\xff\xd9"
    assert has_too_many_parts(hidden, 1)
