"""Images from their bytes to their pixels: what is accepted, rejected and survived."""

from __future__ import annotations

import pathlib
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.decoding.image import identify
from service.errors import BadImage, ImageTooLarge, UnsupportedImageType
from tests.service import synthetic
from tests.service.decoding.decoded import (
    MAX_PIXELS,
    REFUSALS,
    by_name,
    decode,
    is_answered,
    is_what_was_promised,
    rendered_plainly,
)
from tests.service.synthetic import CHART, encode, flat

# pytest's own filters come before the one that `service.decoding` sets.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Invalid APNG:UserWarning", "ignore:Image size:PIL.Image.DecompressionBombWarning"
)


@by_name(synthetic.broken())
def test_what_is_no_image_or_a_broken_one_is_refused(data: bytes) -> None:
    """And the message says what to do."""
    with pytest.raises(BadImage, match=r"Send|Save|save"):
        decode(data, MAX_PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_the_pixel_limit_is_inclusive(kind: str) -> None:
    """One more is told before decoding, with the numbers."""
    data = encode(Image.new("P" if kind == "GIF" else "RGB", (40, 25)), kind)

    assert is_what_was_promised(decode(data, max_pixels=1000))
    with pytest.raises(ImageTooLarge, match=r"40 x 25 .* 999 "):
        identify(data, max_pixels=999)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_what_a_png_says_beside_its_pixels_may_take_long(kind: bytes) -> None:
    """A few kilobytes inflate to megabytes: not on the event loop."""
    png = encode(CHART, "PNG")
    text = b"note\0\0" + zlib.compress(bytes(1 << 20))
    chunk = struct.pack(">I", len(text)) + kind + text
    data = png[:33] + chunk + struct.pack(">I", zlib.crc32(kind + text)) + png[33:]

    assert identify(png, MAX_PIXELS).is_bounded
    assert not identify(data, MAX_PIXELS).is_bounded


def test_small_images_may_be_decoded_on_the_event_loop() -> None:
    """Few bytes and few pixels; never a GIF, whose header does not bound its frames."""
    small = identify(encode(CHART, "JPEG"), MAX_PIXELS)
    large = identify(encode(flat("RGB", 0, 1000), "JPEG"), MAX_PIXELS)
    long = identify(encode(CHART, "JPEG") + bytes(100_000), MAX_PIXELS)
    gif = identify(synthetic.gif(screen=(1, 1)), MAX_PIXELS)

    assert small.is_bounded
    assert not large.is_bounded and not long.is_bounded and not gif.is_bounded


@by_name(synthetic.served())
def test_every_served_file_becomes_the_same_kind_of_array(data: bytes) -> None:
    """RGB, 32 x 32, contiguous, nobody else's to change."""
    assert is_what_was_promised(decode(data, MAX_PIXELS))


@by_name(synthetic.bombs())
def test_bombs_cost_little(data: bytes) -> None:
    """Refused or decoded, in about no time; the memory is in the test after next."""
    start = time.process_time()
    assert is_answered(data)

    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", ["jpeg scans", "jpeg segments behind the frame header"])
def test_a_jpeg_in_countless_pieces_is_refused(name: str) -> None:
    """A few bytes each, but a scan visits every block of the image, which may be a large one."""
    with pytest.raises(BadImage, match="segments or scans"):
        decode(synthetic.bombs()[name], MAX_PIXELS)


def test_what_follows_the_end_of_a_jpeg_is_not_counted() -> None:
    """Phones append a film to a photo, and in a film anything looks like a marker."""
    data = encode(CHART, "JPEG") + b"\xff\xda\0\2" * 5000

    assert is_what_was_promised(decode(data, MAX_PIXELS))


@by_name({name: data for name, data in synthetic.served().items() if len(data) < 20_000})
def test_a_file_cut_anywhere_is_refused_or_complete(data: bytes) -> None:
    for length in {*range(0, len(data), max(1, len(data) // 50)), *range(len(data))[-20:]}:
        assert is_answered(data[:length])


def test_only_our_own_pixel_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's would refuse these, or warn."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)

    for name in ("png.png", "webp.webp", "gif larger than its screen.gif"):
        assert is_what_was_promised(decode(synthetic.served()[name], MAX_PIXELS))


@by_name({name: data for name, data in synthetic.served().items() if len(data) < 8_000})
def test_flipped_bits_are_survived(data: bytes) -> None:
    """The same hundred for ever."""
    random = np.random.default_rng(len(data))
    for _ in range(100):
        flipped = bytearray(data)
        for position in random.integers(0, len(data), random.integers(1, 5)):
            flipped[position] ^= 1 << random.integers(8)
        assert is_answered(bytes(flipped), 1_000_000)


SIGNATURES = [
    b"\xff\xd8\xff",
    synthetic.PNG_SIGNATURE,
    b"GIF89a",
    b"BM" + bytes(12) + b"\x28\0\0\0",
    b"RIFF\x20\0\0\0WEBPVP8X",
    b"",
]


@given(st.sampled_from(SIGNATURES), st.binary(max_size=200))
def test_any_bytes_are_answered(signature: bytes, rest: bytes) -> None:
    """With pixels or one of three exceptions."""
    assert is_answered(signature + rest, 1_000_000)


def run(script: str, *arguments: str) -> str:
    """What the script prints, in a process where warnings are errors from the start."""
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    root = pathlib.Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_nothing_is_printed() -> None:
    """Odd files come through without a warning, even where warnings are errors."""
    script = """if True:
        from service.decoding.image import identify
        from tests.service import synthetic
        for data in synthetic.served().values():
            identify(data, 64_000_000).decode()
    """

    assert run(script) == ""


# Memory. Each in a process of its own, so that no peak hides another; the kernel's own figure,
# since getrusage hands on the peak of the parent.

GROWTH = """if True:
    import pathlib, re, sys
    from service.errors import BadImage, ImageTooLarge
    from service.decoding.image import identify

    def peak():
        return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

    before = peak()
    for path in pathlib.Path(sys.argv[1]).iterdir():
        try:
            identify(path.read_bytes(), 64_000_000).decode()
        except (BadImage, ImageTooLarge):
            pass
    print((peak() - before) * 1024)
"""


def growth(files: Iterable[bytes], folder: pathlib.Path) -> int:
    """Bytes by which decoding the files raises the peak of a fresh process."""
    for number, data in enumerate(files):
        (folder / str(number)).write_bytes(data)
    return int(run(GROWTH, str(folder)))


@pytest.mark.slow
def test_all_bombs_together_take_less_memory_than_one_photo(tmp_path: pathlib.Path) -> None:
    assert growth(synthetic.bombs().values(), tmp_path) < 48 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "CMYK", {"progressive": True, "subsampling": 0}),
        ("PNG", "RGBA", {"compress_level": 1}),
        ("WEBP", "RGBA", {"lossless": True, "quality": 0, "method": 0}),
        ("GIF", "P", {}),
    ],
)
def test_memory_stays_within_thirteen_bytes_a_pixel(
    kind: str, mode: str, options: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """And a little for the tiles; by far most of it is the decoder's own."""
    data = encode(Image.new(mode, (3000, 3000), 3), kind, **options)

    assert growth([data], tmp_path) < 13 * 3000 * 3000 + 16 * 2**20


# Real files, where there are some.

# Pillow opens them and then finds no picture in them.
OPENS_ONLY = {
    "Pillow__Tests__images__apng__chunk_no_fctl.png",
    "Pillow__Tests__images__broken_data_stream.png",
}
# Pillow before 13 fills in what is missing of a run-length BMP.
FILLED_IN = {"image__tests__images__bmp__images__pal4rlecut.bmp"}
# What Pillow alone gets wrong: a transparent colour at 4 bits, grey at 16.
RENDERED_BETTER = {
    "image__tests__images__png__transparency__tbbn0g04.png",
    "image-png__tests__pngsuite__g10n0g16.png",
}


def test_every_odd_file_is_answered_soon(data: pathlib.Path) -> None:
    """Whatever it is: pixels, or one of three exceptions."""
    for path in sorted(data.glob("odd/*/*")):
        start = time.process_time()
        assert is_answered(path.read_bytes()), path.name
        assert time.process_time() - start < 2, path.name


def test_valid_files_are_shown_as_they_should_or_not_served(data: pathlib.Path) -> None:
    """Nobody's good picture is refused, and it looks as it does elsewhere."""
    shown = 0
    for path in sorted(data.glob("odd/valid/*")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = str(Image.open(path).format)
        if kind in {"IM", "SPIDER"}:  # no signature to tell them by
            continue
        if kind not in {"JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF"}:
            with pytest.raises(UnsupportedImageType):
                decode(path.read_bytes(), MAX_PIXELS)
        elif path.name not in OPENS_ONLY:
            pixels = decode(path.read_bytes(), MAX_PIXELS)
            shown += 1
            if path.name not in RENDERED_BETTER:
                difference = np.abs(pixels.astype(int) - rendered_plainly(path))
                assert difference.mean() < 5, path.name
    assert shown > 50


def test_broken_files_are_refused(data: pathlib.Path) -> None:
    for path in sorted(data.glob("odd/broken/*")):
        if path.name not in FILLED_IN:
            with pytest.raises(REFUSALS):
                decode(path.read_bytes(), MAX_PIXELS)


@pytest.mark.slow
def test_photos_look_as_if_decoded_in_full(data: pathlib.Path) -> None:
    for path in sorted(data.glob("photos/*.[jpw]*"))[::5]:
        difference = np.abs(
            decode(path.read_bytes(), MAX_PIXELS) - rendered_plainly(path).astype(int)
        )
        assert difference.mean() < 2, path.name
