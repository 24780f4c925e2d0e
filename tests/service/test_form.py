"""A form is read the same however it is cut; the quick way through it finds what the parser finds,
or leaves it to the parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import MissingImage
from service.form import Form, only_part

BOUNDARY = b"a-boundary"
IMG = b'Content-Disposition: form-data; name="img"; filename="horse.png"'
TYPE = b"Content-Type: image/png"


def form(*parts: tuple[bytes, bytes], end: bytes = b"--\r\n") -> bytes:
    """Of parts, each its head and its content."""
    body = b"".join(
        b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + c + b"\r\n" for head, c in parts
    )
    return body + b"--" + BOUNDARY + end


def parsed(body: bytes, size: int = 2**20) -> bytes | None:
    """By the parser alone, in pieces of `size`; None where it finds no image."""
    parser = Form(BOUNDARY, -1, most=1)
    try:
        for at in range(0, len(body), size):
            parser.write(body[at : at + size])
        return parser.images()[0]
    except MissingImage:
        return None


@pytest.mark.parametrize(
    ("body", "image"),
    [
        (form((IMG, b"pixels")), b"pixels"),
        (form((IMG + b"\r\n" + TYPE, b"pixels")), b"pixels"),
        (form((IMG.lower(), b"pixels"), end=b"--"), b"pixels"),
        (form((IMG, b"two\r\n\r\nlines\r\n--a-bound")), b"two\r\n\r\nlines\r\n--a-bound"),
        (form((b'Content-Disposition: form-data; name="img"', b"pixels")), b"pixels"),
        (form((IMG, b"")), None),
        (form((b'Content-Disposition: form-data; name="note"', b"pixels")), None),
        (form((b'Content-Disposition: form-data; name="IMG"', b"pixels")), None),
        (form((IMG + b"\r\nContent-Transfer-Encoding: base64", b"cGl4")), None),
        (form((IMG, b"one"), (IMG, b"two")), None),
        (form((IMG, b"pixels"), end=b"--\r\nand more"), None),
        (form((IMG, b"pixels"))[:-9], None),
        (b"preamble\r\n" + form((IMG, b"pixels")), None),
        (b"", None),
    ],
)
def test_only_part(body: bytes, image: bytes | None) -> None:
    """One whole part named `img` with ordinary headers; anything else is not for the quick way."""
    found = only_part(body, BOUNDARY)
    assert found == image or (image is None and found == b"")
    assert found is None or (parsed(body) or b"") == found


pieces = st.sampled_from(
    [
        *(b"--a-boundary", b"--", b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"-", b'"', b"\0\xff"),
        *(IMG, TYPE, b"; name=img", b"pixels", b'; filename="x"', b"--a-boundary--\r\n"),
    ]
)


@given(st.lists(pieces, max_size=14))
def test_it_never_finds_what_the_parser_does_not(parts: list[bytes]) -> None:
    """Whatever a form is made of."""
    for body in (b"".join(parts), form((IMG, b"".join(parts))), form((b"".join(parts), b"x"))):
        found = only_part(body, BOUNDARY)
        assert found is None or (parsed(body) or b"") == found


@given(st.lists(pieces, max_size=14), st.integers(1, 40))
def test_pieces_of_any_size(parts: list[bytes], size: int) -> None:
    """Whatever a form is made of, cuts change nothing."""
    any_parts, whole = b"".join(parts), form((IMG, b"pixels"))
    for body in (any_parts, b"\r\n" + any_parts + whole, whole[:-4] + any_parts):
        assert parsed(body, size) == parsed(body)


@pytest.mark.parametrize("rest", [b"\0", b"X\r\n\r\n", 100 * form((b"X: y", b""))[:-16]])
def test_nothing_behind_the_last_image_matters(rest: bytes) -> None:
    """Broken or endless, wherever the form is cut."""
    body = form((IMG, b"pixels"), end=b"\r\n") + rest
    for size in 1, 7, 100_000:
        assert parsed(body, size) == b"pixels"


@pytest.mark.parametrize(
    ("before", "image"),
    [
        (b"\r\n", b"pixels"),
        (b"\n\n\r", b"pixels"),
        (b"\r\npreamble", None),
        (b"\r\npreamble\r\n", None),
        (b"\n\0", None),
        (b" ", None),
    ],
)
def test_what_comes_before_the_first_part(before: bytes, image: bytes | None) -> None:
    """Line breaks are passed over, and nothing else is, wherever the form is cut."""
    for size in 1, 7, 1000:
        assert parsed(before + form((IMG, b"pixels")), size) == image
