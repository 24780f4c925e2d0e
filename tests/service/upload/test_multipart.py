"""A form is read the same however it is cut; the quick way through it finds what the parser finds,
or leaves it to the parser."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from service.errors import MissingImage
from service.upload.multipart import MAX_PARAMETERS, Form, boundary, only_part

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
    parser = Form(BOUNDARY, -1, max_images=1)
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
        *(b" ", b"\t ", b"\r\n--a-boundary", b"\r\n--a-boundary ", b"\r\n--a-boundary\r"),
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


@given(st.lists(pieces, max_size=14), st.integers(1, 40))
def test_form_has_the_data_that_the_parser_finds(parts: list[bytes], size: int) -> None:
    """What is passed over before it gets to the parser changes nothing."""
    found: list[bytes] = []
    callbacks = {
        "on_part_begin": lambda: found.append(b""),
        "on_part_data": lambda data, start, end: found.append(found.pop() + data[start:end]),
    }
    data = form((IMG, b"".join(parts)), (IMG, b"second"))
    parser = MultipartParser(BOUNDARY, callbacks)  # type: ignore[arg-type]
    try:
        parser.write(data)
    except FormParserError:
        found = found[:1]
    reader = Form(BOUNDARY, -1, max_images=1)
    try:
        for at in range(0, len(data), size):
            reader.write(data[at : at + size])
        assert reader.images() == found[:1]
    except MissingImage:
        assert len(found) < 2


MEGABYTE = 2**20
DELIMITER = b"\r\n--" + BOUNDARY
HEAD = b"--" + BOUNDARY + b"\r\n" + IMG + b"\r\n\r\n"
HEADS = b"Content-Disposition: form-data" + b"; " * 2000 + b"\r\n"
COSTLY = {
    "delimiters that are none": HEAD + (DELIMITER + b"x") * (4 * MEGABYTE // 17),
    "halves of the last delimiter": HEAD + (DELIMITER + b"-x") * (4 * MEGABYTE // 18),
    "padding": HEAD + DELIMITER + b" " * 4 * MEGABYTE,
    "padding of each part": (HEAD + DELIMITER + b" " * 60_000 + b"\r\nX: y\r\n\r\n") * 64,
    "parts": (HEAD + b"\r\n") * 50_000,
    "parameters": (b"--" + BOUNDARY + b"\r\n" + HEADS * 8 + b"\r\nx\r\n") * 120,
    "line breaks in an image": HEAD + b"\r\n" * 2 * MEGABYTE,
    "line breaks in front": b"\r\n" * 2 * MEGABYTE,
}


@pytest.mark.parametrize("body", COSTLY.values(), ids=COSTLY)
def test_form_takes_little_time_whatever_it_holds(body: bytes) -> None:
    """Some milliseconds of CPU time for 4 MiB, and the pieces between two turns of the event loop
    take a fraction of that."""
    seconds = []
    for _ in range(3):
        started = time.thread_time()
        parsed(body, 65_536)
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.1


def test_form_may_have_its_boundary_within_its_data() -> None:
    """As often as it may have parts, as long as it ends no part."""
    near = DELIMITER + b"x"
    assert parsed(form((IMG, near * 60))) == near * 60
    reader = Form(BOUNDARY, -1, max_images=1)
    with pytest.raises(MissingImage, match=r"63 parts .* or contains the boundary as data"):
        reader.write(form((IMG, near * 66)))


@pytest.mark.parametrize(("padding", "image"), [(b" \t\r\n", b"pixels"), (b" \r \n", None)])
def test_form_may_have_padding_behind_a_delimiter(padding: bytes, image: bytes | None) -> None:
    """Spaces and tabs (RFC 2046, section 5.1.1), wherever the form is cut."""
    end = b"z" + DELIMITER
    body = form((b"X: y", b"z"), (IMG, b"pixels")).replace(end + b"\r\n", end + padding)
    assert all(parsed(body, size) == image for size in range(1, len(body) + 1))


def test_headers_of_parts_have_few_parameters() -> None:
    """Each takes a microsecond on the event loop."""
    reader = Form(BOUNDARY, -1, max_images=1)
    with pytest.raises(MissingImage, match="more than 1,024 parameters"):
        reader.write(form((IMG + b"; x" * MAX_PARAMETERS, b"pixels")) + b"more")
    assert parsed(form((IMG + b"; x" * (MAX_PARAMETERS - 3), b"pixels")) + b"more") == b"pixels"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        (";" * 65_000, "more than 1,024 parameters"),
        (";a=b" * 16_000, "more than 1,024 parameters"),
        ("; boundary=" + "b" * 71, "boundary of the form has 71 bytes; the maximum is 70"),
        ('; boundary=""', "has no boundary"),
        ("", "has no boundary"),
    ],
)
def test_boundary_of_a_content_type_is_refused(parameters: str, told: str) -> None:
    """One that would take long to find, or to search for, or is not there."""
    with pytest.raises(MissingImage, match=told):
        boundary("multipart/form-data" + parameters)


@pytest.mark.parametrize("found", ["b" * 70, "a b", "(a)?"])
def test_boundary_is_found(found: str) -> None:
    """Whatever RFC 2046 allows."""
    assert boundary(f'multipart/form-data; charset=utf-8; boundary="{found}"') == found.encode()
