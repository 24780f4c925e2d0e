"""Forms that were made to confuse: each has one documented answer, and takes little."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.process import Server
from tests.e2e.test_overload import resident
from tests.faults.faulty import FAULTY, Fault, picture
from tests.faults.wire import NEXT_REQUEST, exchange

pytestmark = pytest.mark.slow
HORSE = picture(Fault.NONE)
MEGABYTE = 2**20


def part(headers: bytes, body: bytes = HORSE) -> bytes:
    return b"--b\r\n" + headers + b"\r\n\r\n" + body + b"\r\n"


def named(name: bytes, body: bytes = HORSE) -> bytes:
    return part(b'Content-Disposition: form-data; name="' + name + b'"', body)


IMG = named(b"img")
END = b"--b--\r\n"
OK, MISSING = "200", "422 missing_image"
INNER = b"Content-Type: multipart/form-data; boundary=c"
FORMS = {
    "one image": (b"b", IMG + END, OK),
    "no end": (b"b", IMG, MISSING),
    "no parts": (b"b", END, MISSING),
    "empty": (b"b", b"", MISSING),
    "no boundary": (b"", IMG + END, MISSING),
    "a quoted boundary": (b'"b"', IMG + END, OK),
    "another boundary": (b"c", IMG + END, MISSING),
    "a boundary of 10,000 letters": (b"b" * 10_000, IMG + END, MISSING),
    "a boundary of line breaks": (b'"b%0d%0a"', IMG + END, MISSING),
    "two fields img": (b"b", named(b"img", picture(Fault.NONE, 7)) + IMG + END, OK),
    "an empty one, then an image": (b"b", named(b"img", b"") + IMG + END, MISSING),
    "63 others": (b"b", named(b"x", b"y") * 63 + IMG + END, OK),
    "64 others": (b"b", named(b"x", b"y") * 64 + IMG + END, MISSING),
    "100,000 parts": (b"b", named(b"x", b"y") * 100_000, MISSING),
    "1,000 images, of which one is enough": (b"b", IMG * 1000 + END, OK),
    "a name in capitals": (b"b", named(b"IMG") + END, MISSING),
    "no name": (b"b", part(b"Content-Disposition: form-data") + END, MISSING),
    "no headers": (b"b", b"--b\r\n\r\n" + HORSE + b"\r\n" + END, MISSING),
    "two names, of which the last counts": (
        b"b",
        part(b'Content-Disposition: form-data; name="x"; name="img"') + END,
        OK,
    ),
    "10,000 headers of a part": (b"b", part(b"X: y\r\n" * 10_000 + b"Z: z"), MISSING),
    "a header of a megabyte": (b"b", part(b"X: " + b"y" * MEGABYTE), MISSING),
    "a header without an end": (b"b", b"--b\r\nX: " + b"y" * MEGABYTE, MISSING),
    "a form within a form": (
        b"b",
        part(INNER, b"--c\r\nContent-Disposition: form-data; name=img\r\n\r\nx\r\n--c--") + END,
        MISSING,
    ),
    "a part behind the image that is none": (b"b", named(b"img", HORSE + b"\r\n--b") + END, OK),
    "almost the boundary, a megabyte of it": (
        b"b",
        named(b"x", b"\r\n--a" * 200_000) + IMG + END,
        OK,
    ),
    "line breaks only": (b"b", b"\r\n" * MEGABYTE, MISSING),
    "dashes only": (b"b", b"-" * MEGABYTE, MISSING),
    "a preamble of a megabyte": (b"b", b"x" * MEGABYTE + b"\r\n" + IMG + END, MISSING),
    "an epilogue of a megabyte": (b"b", IMG + END + b"x" * MEGABYTE, OK),
    "bare line feeds": (b"b", (IMG + END).replace(b"\r\n", b"\n"), MISSING),
    "encoded as base64": (
        b"b",
        part(b'Content-Disposition: form-data; name="img"\r\nContent-Transfer-Encoding: base64')
        + END,
        OK,
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*FAULTY, SHOAL_UPLOAD_TIMEOUT="5") as server:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0
        assert [record for record in server.log() if record["level"] in ("error", "critical")] == []
        held = server.log_of("the loop")["held"]
        assert held < 0.05, f"the event loop was held for {1000 * held:.0f} ms"


def form(boundary: bytes, body: bytes, chunk: int = 0) -> bytes:
    """The whole request; in chunks of so many bytes, if so."""
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data"
    if boundary:
        head += b"; boundary=" + boundary
    if not chunk:
        return head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    pieces = (body[at : at + chunk] for at in range(0, len(body), chunk))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize("name", FORMS)
async def test_form_has_one_documented_answer(server: Server, name: str) -> None:
    """In one piece or in chunks of any size, a form gets the same answer."""
    boundary, body, answer = FORMS[name]
    before = resident(server.pid)
    for chunk in (0, 1000, 7) if len(body) < 100_000 else (0, 100_000):
        told = await exchange(server, form(boundary, body, chunk) + NEXT_REQUEST)
        assert told in ([answer, "200"], [answer])
        assert told[1:] or len(body) > 100_000, "only a long rest may end the connection"
    assert resident(server.pid) - before < 30_000, "kB"


def test_first_of_two_images_counts(server: Server) -> None:
    """Of two images in a form, the second is ignored."""
    first, second = picture(Fault.NONE, 3), b"no image"
    body = named(b"img", first) + named(b"img", second) + END
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = httpx.post(f"{server.url}/predict", content=body, headers=headers)
    assert response.json()["class"] == "cat"
