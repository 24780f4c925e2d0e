"""Shapes of HTTP/1.1 by which requests are smuggled past a proxy, and absurd ones: each has one
documented answer, and where a request ends is never in doubt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from service.upload.body import CHECK_INTERVAL, GRACE
from tests.e2e.process import Server
from tests.e2e.test_overload import resident
from tests.faults.faulty import FAULTY, Fault, picture
from tests.faults.wire import NEXT_REQUEST, address, answers, exchange

pytestmark = pytest.mark.slow

GET = b"GET /healthz HTTP/1.1\r\nHost: shoal\r\n"
POST = b"POST /predict HTTP/1.1\r\nHost: shoal\r\nContent-Type: image/png\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
SLOW_SECONDS = GRACE * CHECK_INTERVAL
"""After which an upload would be ended for its pace, were its time not up before."""
BAD = ["400 bad_request"]
"""And the connection ends: nothing behind it is taken for a request."""

# What is refused for its framing. `12345` would be a bad image, and 0 chunks none at all.
AMBIGUOUS = {
    "length and chunks": POST + b"Content-Length: 5\r\n" + CHUNKED + b"0\r\n\r\n",
    "chunks and length": POST + CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    "two equal lengths": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n12345",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\n12345",
    "+5": POST + b"Content-Length: +5\r\n\r\n12345",
    "-5": POST + b"Content-Length: -5\r\n\r\n12345",
    "0x5": POST + b"Content-Length: 0x5\r\n\r\n12345",
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\n12345",
    "an empty length": POST + b"Content-Length: \r\n\r\n",
    "space before the colon": POST + b"Content-Length : 5\r\n\r\n12345",
    "space before that colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks within another coding": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + CHUNKED[:-2] + CHUNKED + b"0\r\n\r\n",
    "chunked and nonsense": POST + CHUNKED[:-2] + b"Transfer-Encoding: cow\r\n\r\n0\r\n\r\n",
    "a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "bare LF": GET.replace(b"\r\n", b"\n") + b"\n",
    "bare CR": GET + b"X: a\rY: b\r\n\r\n",
    "NUL": GET + b"X: a\0b\r\n\r\n",
    "no colon": GET + b"Xabc\r\n\r\n",
    "no name": GET + b": x\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: other\r\n\r\n",
    "bare LF in an extension": POST + CHUNKED + b"5;a\n12345\r\n0\r\n\r\n",
    "bare LF around a chunk": POST + CHUNKED + b"5\n12345\n0\n\n",
    "space behind a size": POST + CHUNKED + b"5 \r\n12345\r\n0\r\n\r\n",
    "a size of 0x5": POST + CHUNKED + b"0x5\r\n12345\r\n0\r\n\r\n",
    "a size of -5": POST + CHUNKED + b"-5\r\n12345\r\n0\r\n\r\n",
    "a size beyond 64 bits": POST + CHUNKED + b"10000000000000005\r\n12345\r\n0\r\n\r\n",
    "more than the size says": POST + CHUNKED + b"5\r\n123456\r\n0\r\n\r\n",
    "a length in a trailer": POST + CHUNKED + b"0\r\nContent-Length: 50\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": GET.replace(b"1.1", b"1.2") + b"\r\n",
    "a method in small letters": GET.replace(b"GET", b"get") + b"\r\n",
    "a tunnel": b"CONNECT shoal:1 HTTP/1.1\r\nHost: shoal\r\n\r\n",
    "a tab in the first line": GET.replace(b" HTTP", b"\tHTTP") + b"\r\n",
    "a space in the path": GET.replace(b"healthz", b"heal thz") + b"\r\n",
    "raw bytes in the path": GET.replace(b"healthz", b"\xff\xfe") + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}
PLAIN = {
    "chunks": (POST + CHUNKED + b"5\r\n12345\r\n0\r\n\r\n", "400 bad_image"),
    "chunks within gzip, as they are": (
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n",
        "400 bad_image",
    ),
    "a chunk's extension": (POST + CHUNKED + b"5;a=b\r\n12345\r\n0\r\n\r\n", "400 bad_image"),
    "a trailer": (POST + CHUNKED + b"5\r\n12345\r\n0\r\nX-Request-ID: me\r\n\r\n", "400 bad_image"),
    "a GET with a body": (GET + b"Content-Length: 5\r\n\r\n12345", "200"),
    "empty lines before": (b"\r\n\r\n" + GET + b"\r\n", "200"),
    "an absolute URL": (GET.replace(b" /", b" http://other/") + b"\r\n", "200"),
    "TRACE": (GET.replace(b"GET", b"TRACE") + b"\r\n", "405 method_not_allowed"),
    "OPTIONS *": (GET.replace(b"GET /healthz", b"OPTIONS *") + b"\r\n", "404 not_found"),
    "dots": (GET.replace(b"/healthz", b"/../../etc/passwd") + b"\r\n", "404 not_found"),
    "encoded dots": (GET.replace(b"/healthz", b"/%2e%2e/etc/passwd") + b"\r\n", "404 not_found"),
    "an encoded NUL": (GET.replace(b"healthz", b"%00") + b"\r\n", "404 not_found"),
    "no UTF-8": (GET.replace(b"healthz", b"%ff%c0%af") + b"\r\n", "404 not_found"),
    "an encoded line break": (
        GET.replace(b"healthz", b"healthz%0d%0aX:") + b"\r\n",
        "404 not_found",
    ),
    "slashes": (GET.replace(b"/healthz", b"//////healthz") + b"\r\n", "404 not_found"),
    "a path of 60,000 letters": (GET.replace(b"healthz", b"a" * 60_000) + b"\r\n", "404 not_found"),
    "a query of 60,000": (GET.replace(b"healthz", b"healthz?" + b"a" * 60_000) + b"\r\n", "200"),
    "another expectation": (
        POST + b"Expect: 200-ok\r\nContent-Length: 5\r\n\r\n12345",
        "400 bad_image",
    ),
}
OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "websocket": b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*FAULTY, SHOAL_UPLOAD_TIMEOUT="0.5") as server:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0
        assert [record for record in server.log() if record["level"] in ("error", "critical")] == []


@pytest.mark.parametrize("shape", AMBIGUOUS)
async def test_ambiguous_request_is_rejected(server: Server, shape: str) -> None:
    """It gets 400, and the connection ends before anything after it is read."""
    assert await exchange(server, AMBIGUOUS[shape] + NEXT_REQUEST) == BAD


async def test_request_line_above_64_kib_is_rejected(server: Server) -> None:
    """It gets 431, wherever it is split."""
    path = GET.replace(b"healthz", b"a" * 70_000) + b"\r\n"
    told = await exchange(server, path + NEXT_REQUEST)
    assert told in (["431 head_too_large"], []), "a reset may overtake the answer"


@pytest.mark.parametrize("shape", PLAIN)
async def test_unusual_but_valid_request_is_answered(server: Server, shape: str) -> None:
    """So is the request after it on the same connection."""
    request, answer = PLAIN[shape]
    assert await exchange(server, request + NEXT_REQUEST) == [answer, "200"]


@pytest.mark.parametrize("offer", OFFERS)
async def test_upgrade_offer_is_ignored(server: Server, offer: str) -> None:
    """The request and its body are answered as usual, since Java's client always offers one."""
    image = picture(Fault.NONE)
    head = POST + OFFERS[offer] + b"Content-Length: %d\r\n\r\n" % len(image)
    assert await exchange(server, head + image + NEXT_REQUEST) == ["200", "200"]
    assert await exchange(server, head, image, NEXT_REQUEST, pause=0.05) == ["200", "200"]
    assert await exchange(server, GET + OFFERS[offer] + b"\r\n" + NEXT_REQUEST) == ["200", "200"]


async def test_expect_100_continue(server: Server) -> None:
    """The client gets 100, unless its request is rejected already."""
    image = picture(Fault.NONE)
    head = POST + b"Expect: 100-continue\r\nContent-Length: "
    told = await exchange(
        server, head + b"%d\r\n\r\n" % len(image), image, NEXT_REQUEST, pause=0.05
    )
    assert told == ["100", "200", "200"]
    assert await exchange(server, head + b"500000000\r\n\r\n") == ["413 body_too_large"]


async def test_trailers_are_not_headers(server: Server) -> None:
    """Fields after the body change nothing that came before it."""
    reader, writer = await asyncio.open_connection(*address(server))
    trailer = b"X-Request-ID: smuggled\r\n\r\n"
    writer.write(POST + CHUNKED + b"5\r\n12345\r\n0\r\n" + trailer + NEXT_REQUEST)
    told = await reader.read()
    writer.close()
    assert answers(told) == ["400 bad_image", "200"]
    assert b"smuggled" not in told


@pytest.mark.parametrize(
    "flood",
    [
        b"0\r\n" + b"X: y\r\n" * 5_000_000,
        b"0\r\nX: " + b"y" * 30_000_000,
        b"5;" + b"a" * 30_000_000,
    ],
    ids=["trailers", "a long trailer", "a long extension"],
)
async def test_chunk_overhead_is_bounded(server: Server, flood: bytes) -> None:
    """30 MB around a body of 5 bytes are rejected after 64 KiB, and memory holds."""
    before = resident(server.pid)
    told = await exchange(server, POST + CHUNKED + b"5\r\n12345\r\n" + flood)
    assert told in (["431 head_too_large"], []), "a reset may overtake the answer"
    assert resident(server.pid) - before < 5_000, "kB"


async def test_body_in_chunks_of_one_byte_is_read(server: Server) -> None:
    """Chunk sizes and line ends of five times its size are accepted."""
    image = picture(Fault.NONE) + bytes(100_000)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in image) + b"0\r\n\r\n"
    assert await exchange(server, POST + CHUNKED + chunks + NEXT_REQUEST) == ["200", "200"]


@pytest.mark.parametrize("length", [b"10", b"100000"])
async def test_wrong_content_length(server: Server, length: bytes) -> None:
    """Excess bytes are an invalid next request; missing bytes are not awaited for long."""
    image, began = picture(Fault.NONE), time.monotonic()
    told = await exchange(server, POST + b"Content-Length: " + length + b"\r\n\r\n" + image)
    assert told == (["400 bad_image", *BAD] if length == b"10" else ["408 upload_timeout"])
    assert time.monotonic() - began < SLOW_SECONDS


async def test_chunks_without_an_end_time_out(server: Server) -> None:
    """The upload ends at its timeout, whatever the last chunk claims."""
    began = time.monotonic()
    told = await exchange(server, POST + CHUNKED + b"5\r\n12345\r\n")
    assert told == ["408 upload_timeout"]
    assert time.monotonic() - began < SLOW_SECONDS
