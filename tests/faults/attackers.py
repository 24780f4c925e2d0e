"""Attacks a server from addresses of its own.

    python -m tests.faults.attackers NAME PORT GRPC_PORT SECONDS

It runs as a separate process, so that it shares only the machine with an honest client that is
measured at the same time. It prints `there` when it begins, and its result as JSON when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import pathlib
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks.processes import started
from model_store.manifest import STORE
from tests.e2e.process import ROOT
from tests.faults import hostile
from tests.faults.wire import post

HOST = "127.0.0.1"
ATTACKERS = 4
"""Number of addresses that send files, with one connection each."""
MODEL = next(folder.name for folder in STORE.iterdir() if folder.is_dir())
INFER = f"/v2/models/{MODEL}/infer"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
PATIENCE = 60.0
SECONDS = 8.0


@dataclass
class Result:
    """What an attack sent and received."""

    bytes_sent: int = 0
    requests: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """Status -> number of answers; `cut off`: the server closed the connection without an
    answer."""
    held: int = 0
    """Connections that were open without an answer at the end of the attack."""
    note: str = ""


class Field:
    """The target and the result of an attack. Opens connections from several addresses and
    counts."""

    def __init__(self, port: int, grpc_port: int | None, seconds: float) -> None:
        self.port, self.grpc_port, self.seconds = port, grpc_port, seconds
        self.end = time.monotonic() + seconds
        self.result = Result()

    def over(self) -> bool:
        return time.monotonic() >= self.end

    async def connect(self, number: int, port: int | None = None) -> Line:
        """Opens a connection from address 127.0.1.1 + `number`. Raises OSError."""
        reader, writer = await asyncio.open_connection(
            HOST, port or self.port, local_addr=(address(number), 0), limit=2**20
        )
        return Line(reader, writer, self.result)

    async def all(self, count: int, one: Callable[[int], Awaitable[None]]) -> None:
        """Runs `one(number)` for each of `count` attackers until the attack is over."""

        async def until_over(number: int) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(max(0.0, self.end - time.monotonic())):
                    await one(number)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(until_over(number))


class Line:
    """One connection of an attacker."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, result: Result
    ) -> None:
        self.reader, self.writer = reader, writer
        self._result = result

    async def send(self, data: bytes, requests: int = 0) -> None:
        """Sends data. Raises OSError if the connection has ended."""
        if self.writer.transport.is_closing():
            raise ConnectionResetError
        self._result.requests += requests
        self._result.bytes_sent += len(data)
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> bool:
        """Reads one answer and counts it. Returns whether the connection can be used again."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            lower = head.lower()
            _, _, length = lower.partition(b"content-length:")
            await self.reader.readexactly(int(length.partition(b"\r")[0] or 0))
        except (OSError, asyncio.IncompleteReadError):
            self._result.answers["cut off"] += 1
            return False
        self._result.answers[head[9:12].decode()] += 1
        return b"connection: close" not in lower

    async def drop(self) -> None:
        """Reads and counts answers until the server closes the connection."""
        with contextlib.suppress(OSError):
            while data := await self.reader.read(2**18):
                if found := data.count(b"HTTP/1.1 200"):
                    self._result.answers["200"] += found
                if others := data.count(b"HTTP/1.1 ") - found:
                    self._result.answers["not 200"] += others

    def receive_little(self) -> None:
        """Minimizes the receive buffer, so that the system holds little of what is not read."""
        found = self.writer.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def is_held(self) -> bool:
        """Returns whether the connection is still open."""
        found = self.writer.get_extra_info("socket")
        return bool(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\1")

    def close(self) -> None:
        self.writer.transport.abort()


Attack = Callable[[Field], Awaitable[None]]
ATTACKS: dict[str, Attack] = {}
LASTING: dict[str, float] = {}
"""Attack -> seconds, for those that need more than `SECONDS` to have an effect."""


def attack(name: str, seconds: float | None = None) -> Callable[[Attack], Attack]:
    def add(run: Attack) -> Attack:
        ATTACKS[name] = run
        if seconds is not None:
            LASTING[name] = seconds
        return run

    return add


def names() -> list[str]:
    """Returns the names of all attacks: the files first, then the others."""
    return [*hostile.FILES, *ATTACKS]


def seconds_of(name: str, usual: float = SECONDS) -> float:
    return LASTING.get(name, usual)


def address(number: int) -> str:
    """Returns an address of the loopback network that no honest client uses."""
    return f"127.0.{1 + number // 250}.{1 + number % 250}"


async def repeat(
    field: Field, number: int, request: bytes, rate: float | None = None, requests: int = 1
) -> None:
    """Sends `request` repeatedly on connections that stay open, each after the previous answer, at
    most `rate` bytes per second."""
    line: Line | None = None
    began, sent = time.monotonic(), 0
    try:
        while not field.over():
            if line is None:
                line = await field.connect(number)
            sending = asyncio.ensure_future(line.send(request, requests))
            kept = await line.answer()  # a refusal may come before the end of the upload
            with contextlib.suppress(OSError):
                if sending.done() or kept:
                    await sending
            sending.cancel()
            if not kept:
                line.close()
                line = None
                await asyncio.sleep(0.01)
            sent += len(request)
            if rate is not None:
                await asyncio.sleep(max(0.0, began + sent / rate - time.monotonic()))
    finally:
        if line is not None:
            line.close()


async def files(field: Field, images: Sequence[bytes], rate: float | None = None) -> None:
    """`ATTACKERS` addresses send images in turns, each waiting for its answers."""
    requests = [post("/predict", "image/png", image) for image in images]

    async def one(number: int) -> None:
        turns = itertools.cycle([*requests[number:], *requests[:number]])
        while True:
            await repeat_once(field, number, next(turns))

    if len(requests) == 1:
        await field.all(ATTACKERS, lambda number: repeat(field, number, requests[0], rate))
    else:
        await field.all(ATTACKERS, one)


async def repeat_once(field: Field, number: int, request: bytes) -> None:
    """Sends a request on its own connection."""
    line = None
    try:
        line = await field.connect(number)
        await line.send(request, 1)
        await line.answer()
    except OSError:
        await asyncio.sleep(0.01)
    finally:
        if line is not None:
            line.close()


async def flood(field: Field, count: int, piece: bytes, requests: int, reads: bool) -> None:
    """`count` connections send `piece` repeatedly, as fast as they can."""

    async def one(number: int) -> None:
        while True:
            line = await field.connect(number)
            dropping = asyncio.ensure_future(line.drop()) if reads else None
            try:
                while not (dropping and dropping.done()):
                    await line.send(piece, requests)
                    await asyncio.sleep(0)
            except OSError:
                await asyncio.sleep(0.05)
            finally:
                if dropping:
                    dropping.cancel()
                line.close()

    await field.all(count, one)


async def hold(
    field: Field,
    count: int,
    first: bytes,
    then: bytes | Callable[[], bytes] = b"",
    every: float = 1.0,
    port: int | None = None,
    reads: bool = True,
) -> None:
    """`count` connections send `first`, then `then` every `every` seconds, and connect again when
    they are cut off. Those that are open without an answer at the end count as held."""
    lines: dict[int, Line] = {}

    async def one(number: int) -> None:
        while True:
            await asyncio.sleep(0.5 * (number % 100) / 100)
            lines[number] = line = await field.connect(number, port)
            listening = asyncio.ensure_future(line.drop()) if reads else None
            try:
                await line.send(first, 1)
                while not (listening and listening.done()):
                    waiting = {listening} if listening else set()
                    if waiting:
                        await asyncio.wait(waiting, timeout=every)
                    else:
                        await asyncio.sleep(every)
                    if then:
                        await line.send(then() if callable(then) else then)
            except OSError:
                field.result.answers["cut off"] += 1
            del lines[number]
            if listening:
                listening.cancel()
            line.close()
            await asyncio.sleep(0.2)

    async def keep_open(number: int) -> None:
        with contextlib.suppress(OSError):
            await one(number)
            await asyncio.sleep(0.2)

    await field.all(count, keep_open)
    field.result.held = sum(
        1 for line in lines.values() if not line.reader.at_eof() and not line.reader.exception()
    )
    for line in lines.values():
        line.close()


def _head(path: str = "/predict", **headers: object) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{''.join(lines)}\r\n".encode()


# Connections and heads.


@attack("Pipelining, 25 connections of 9,800 requests each")
async def pipelining(field: Field) -> None:
    await flood(field, 25, HEALTH * 9800, 9800, reads=True)


@attack("Pipelining, 100 connections, answers not read")
async def pipelining_unread(field: Field) -> None:
    await flood(field, 100, HEALTH * 9800, 9800, reads=False)


@attack("Pipelining, tiny images")
async def pipelining_images(field: Field) -> None:
    image = hostile.lossless_webp((1, 1))
    await flood(field, 25, post("/predict", "image/webp", image) * 1000, 1000, reads=True)


@attack("Pipelining, 100 connections of 46-byte WebPs, answers not read")
async def pipelining_worst(field: Field) -> None:
    image = post("/predict", "image/webp", hostile.FILES["WebP, lossless, 16383 x 3906"]())
    await flood(field, 100, image * 100, 100, reads=False)


@attack("Pipelining, offers to upgrade")
async def upgrades(field: Field) -> None:
    offer = (
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    )
    await flood(field, 25, offer * 1000, 1000, reads=True)


@attack("Offers of WebSockets, each on a connection of its own")
async def websockets(field: Field) -> None:
    offer = (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )

    async def one(number: int) -> None:
        while True:
            await repeat_once(field, number, offer)

    await field.all(25, one)


@attack("Connections that are opened and closed")
async def churn(field: Field) -> None:
    async def one(number: int) -> None:
        while True:
            (await field.connect(number)).close()
            field.result.requests += 1

    await field.all(20, one)


@attack("5,000 connections that send nothing", 10)
async def silent(field: Field) -> None:
    await hold(field, 5000, b"")


@attack("1,000 slow heads, a byte per second", 10)
async def slow_heads(field: Field) -> None:
    await hold(field, 1000, b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"x")


@attack("1,000 slow bodies, a byte per second", 10)
async def slow_bodies(field: Field) -> None:
    await hold(field, 1000, _head(Content_Type="image/png", Content_Length=100_000), b"x")


@attack("100 uploads of 10 MiB that stall before their last byte", 10)
async def stalled(field: Field) -> None:
    body = bytes(10 * 2**20 - 1)
    await hold(field, 100, _head(Content_Type="image/png", Content_Length=10 * 2**20) + body)


@attack("200 clients that do not read, and send one more byte", 45)
async def unread(field: Field) -> None:
    """Each connection requests a different number of pages, so that some fill the buffers with the
    last one."""
    page = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    lines: list[Line] = []

    async def one(number: int) -> None:
        lines.append(line := await field.connect(number))
        line.reader._transport.pause_reading()  # type: ignore[attr-defined]
        line.receive_little()
        await line.send(page * (1 + number), 1 + number)
        await asyncio.sleep(5)
        await line.send(b"G")
        await asyncio.sleep(field.seconds)

    await field.all(200, one)
    field.result.held = sum(line.is_held() for line in lines)
    for line in lines:
        line.close()


@attack("Heads of 60 KiB, 3,000 headers")
async def many_headers(field: Field) -> None:
    lines = b"".join(b"X-%d: y\r\n" % number for number in range(5000))[:60_000]
    request = HEALTH[:-2] + lines[: lines.rindex(b"\r\n") + 2] + b"\r\n"
    await field.all(10, lambda number: repeat(field, number, request))


@attack("Bodies in chunks of one byte")
async def chunks(field: Field) -> None:
    body = b"1\r\nx\r\n" * 500_000 + b"0\r\n\r\n"
    request = _head(Content_Type="image/png", Transfer_Encoding="chunked") + body
    await field.all(4, lambda number: repeat(field, number, request))


@attack("Paths that do not exist, each another")
async def unknown_paths(field: Field) -> None:
    numbers = itertools.count()

    async def one(number: int) -> None:
        line = await field.connect(number)
        while True:
            path = f"/{next(numbers)}/{'x' * 500}"
            await line.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 1)
            if not await line.answer():
                line = await field.connect(number)

    await field.all(10, one)


@attack("Metrics and documentation, as fast as they are answered")
async def pages(field: Field) -> None:
    wanted = [
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for path in ("/metrics", "/openapi.json", "/docs", "/")
    ]
    await field.all(8, lambda number: repeat(field, number, wanted[number % len(wanted)]))


# Bodies.


@attack("Uploads of 10 MiB that are no image")
async def rubbish(field: Field) -> None:
    request = post("/predict", "image/png", bytes(10 * 2**20))
    await field.all(ATTACKERS, lambda number: repeat(field, number, request))


def _of_form(name: str, body: Callable[[], bytes], path: str = "/predict") -> None:
    async def run(field: Field) -> None:
        request = post(path, "multipart/form-data; boundary=b", body())
        await field.all(ATTACKERS, lambda number: repeat(field, number, request))

    attack(f"Form, {name}")(run)


_PART = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n'
_of_form("200,000 parts", lambda: _PART * 180_000 + b"--b--\r\n")
_of_form("a header of 10 MiB", lambda: b"--b\r\nX: " + b"y" * (10 * 2**20 - 100))
_of_form("millions of empty headers", lambda: b"--b\r\n" + b"X:\r\n" * 2_500_000)
_of_form("nothing but almost-boundaries", lambda: b"--b\r\n\r\n" + b"\r\n--" * 2_500_000)
_of_form("a preamble of line ends", lambda: b"\r\n" * 5_000_000)
_of_form("no part ends", lambda: b"--b\r\n\r\n" + b"\r" * 10_000_000)
_of_form(
    "100,000 images of no bytes",
    lambda: (
        b'--b\r\nContent-Disposition: form-data; name="img"; filename="a"\r\n\r\n\r\n' * 140_000
    ),
    "/predict/batch",
)


def _of_json(name: str, body: Callable[[], bytes]) -> None:
    async def run(field: Field) -> None:
        request = post(INFER, "application/json", body())
        await field.all(ATTACKERS, lambda number: repeat(field, number, request))

    attack(f"JSON, {name}")(run)


def _tensor(data: bytes, shape: bytes = b"1", datatype: bytes = b"BYTES") -> bytes:
    return b'{"inputs":[{"name":"image","shape":[%b],"datatype":"%b","data":[%b]}]}' % (
        shape,
        datatype,
        data,
    )


_SIZE = 10 * 2**20 - 1000
_of_json("nested 10 million deep", lambda: b"[" * _SIZE)
_of_json("data nested 5 million deep", lambda: _tensor(b"[" * (_SIZE // 2) + b"]" * (_SIZE // 2)))
_of_json("objects nested 2 million deep", lambda: b'{"a":' * (_SIZE // 5))
_of_json("a number of 10 million digits", lambda: _tensor(b"1" * _SIZE))
_of_json("numbers of 4,000 digits", lambda: _tensor(b",".join([b"9" * 4000] * (_SIZE // 4001))))
_of_json(
    "exponents of 300", lambda: _tensor(b",".join([b"1e300"] * (_SIZE // 6)), datatype=b"FP32")
)
_of_json("5 million zeros", lambda: _tensor(b",".join([b"0"] * (_SIZE // 2)), datatype=b"UINT8"))
_of_json("5 million empty lists", lambda: _tensor(b",".join([b"[]"] * (_SIZE // 3))))
_of_json("3 million empty strings", lambda: _tensor(b",".join([b'""'] * (_SIZE // 3))))
_of_json("escapes", lambda: _tensor(b'"' + b"\\u0041" * (_SIZE // 6) + b'"'))
_of_json("keys, each another", lambda: b"{%b}" % b",".join(
    b'"%07d":0' % number for number in range(_SIZE // 12)
))  # fmt: skip
_of_json("one key, a million times", lambda: b"{%b}" % b",".join([b'"a":0'] * (_SIZE // 6)))
_of_json("a shape of 5 million", lambda: _tensor(b'"x"', b",".join([b"1"] * (_SIZE // 2))))
_of_json("spaces", lambda: b" " * _SIZE)


@attack("/predict/batch of 64 GIFs with disposal 2")
async def batch_of_gifs(field: Field) -> None:
    kind, body = hostile.form([hostile.gif_disposal_2()] * 64)
    request = post("/predict/batch", kind, body)
    await field.all(ATTACKERS, lambda number: repeat(field, number, request))


@attack("/predict/batch of 64 lossless WebPs of 64 megapixels")
async def batch_of_webps(field: Field) -> None:
    kind, body = hostile.form([hostile.webp_lossless()] * 64)
    request = post("/predict/batch", kind, body)
    await field.all(ATTACKERS, lambda number: repeat(field, number, request))


@attack("/v2 infer of 64 lossless WebPs of 64 megapixels")
async def infer_of_webps(field: Field) -> None:
    request = post(INFER, "application/json", hostile.inference([hostile.webp_lossless()] * 64))
    await field.all(ATTACKERS, lambda number: repeat(field, number, request))


@attack("/predict/batch of 40 progressive JPEGs of 64 scans, 64 megapixels")
async def batch_of_jpegs(field: Field) -> None:
    kind, body = hostile.form([hostile.jpeg_gray_scans()] * 40)
    request = post("/predict/batch", kind, body)
    await field.all(ATTACKERS, lambda number: repeat(field, number, request))


@attack("Clients that leave during a decode of a 46-byte WebP")
async def leavers(field: Field) -> None:
    request = post("/predict", "image/webp", hostile.webp_lossless())

    async def one(number: int) -> None:
        while True:
            line = await field.connect(number)
            await line.send(request, 1)
            await asyncio.sleep(0.05)
            line.close()

    await field.all(20, one)


@attack("Poisoned estimates: images of one pixel in every format, then photos", 12)
async def poison(field: Field) -> None:
    """Makes the server learn a wrong time per pixel from images of one pixel with much other data.
    The answers to honest clients afterwards count."""
    await files(
        field,
        [
            hostile.gif_comments(),
            hostile.png_international(),
            hostile.png_text(),
            hostile.webp_metadata(),
            hostile.jpeg_exif(),
        ],
    )


# gRPC.


@attack("gRPC, 200 streams that send nothing", 12)
async def grpc_streams(field: Field) -> None:
    import grpc

    assert field.grpc_port is not None
    options = [("grpc.use_local_subchannel_pool", 1)]
    target = f"{HOST}:{field.grpc_port}"
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(8)]
    method = "/inference.GRPCInferenceService/ModelInfer"
    calls: list[Any] = [channels[number % 8].stream_unary(method)() for number in range(200)]
    field.result.requests = len(calls)
    await asyncio.sleep(2)
    waits = []
    async with grpc.aio.insecure_channel(target, options=options) as honest:
        infer: Any = honest.unary_unary(method)
        message = hostile.message(MODEL, [hostile.lossless_webp((1, 1))])
        while not field.over():
            began = time.monotonic()
            try:
                await infer(message, timeout=30)
            except grpc.aio.AioRpcError as error:
                field.result.answers[error.code().name] += 1
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.2)
    field.result.held = sum(not call.done() for call in calls)
    field.result.note = f"another client's call took up to {max(waits, default=0):.2f} s"
    for call in calls:
        call.cancel()
    for channel in channels:
        await channel.close()


@attack("gRPC, 5,000 connections that send nothing", 10)
async def grpc_connections(field: Field) -> None:
    await hold(
        field, 5000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", port=field.grpc_port
    )


@attack("gRPC, messages of 64 lossless WebPs of 64 megapixels")
async def grpc_webps(field: Field) -> None:
    await messages(field, [hostile.message(MODEL, [hostile.webp_lossless()] * 64)])


@attack("gRPC, messages of millions of empty fields")
async def grpc_fields(field: Field) -> None:
    from tests.service.grpc.test_wire_prescan import WORST

    await messages(field, list(WORST.values()))


async def messages(field: Field, bodies: Sequence[bytes]) -> None:
    """`ATTACKERS` connections send the messages in turns, each after the previous answer."""
    import grpc

    async def one(number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"{HOST}:{field.grpc_port}", options=options) as line:
            call: Any = line.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for body in itertools.cycle(bodies):
                field.result.requests += 1
                field.result.bytes_sent += len(body)
                try:
                    await call(body, timeout=30)
                    field.result.answers["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    field.result.answers[error.code().name] += 1

    await field.all(ATTACKERS, one)


FOLDER = "folder:"
"""Prefix of the path of a folder: ten addresses together send its files at `CROWD_RATE`."""
CROWD, CROWD_RATE = 10, 100 * 1024
"""Number of addresses, and the bytes per second that they send together."""
UNDER_WAY = 50
"""Maximum number of requests of an address that wait for answers."""


async def crowd(field: Field, images: Sequence[bytes]) -> None:
    """`CROWD` addresses send their shares of `CROWD_RATE`, whether or not they get answers."""
    requests = [post("/predict", "image/png", image) for image in images]

    async def one(number: int) -> None:
        began, sent = time.monotonic(), 0
        turns = itertools.cycle(requests[number % len(requests) :: CROWD])
        async with asyncio.TaskGroup() as group:
            under_way: set[asyncio.Task[None]] = set()
            for request in turns:
                while len(under_way) >= UNDER_WAY:
                    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                task = group.create_task(repeat_once(field, number, request))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                sent += len(request)
                due = began + sent * CROWD / CROWD_RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    await field.all(CROWD, one)


def read(folder: pathlib.Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


async def run(name: str, port: int, grpc_port: int | None, seconds: float) -> Result:
    if name in hostile.FILES:
        image = await asyncio.to_thread(hostile.FILES[name])
        todo: Attack = functools.partial(files, images=[image])
    elif name.startswith(FOLDER):
        todo = functools.partial(crowd, images=read(pathlib.Path(name.removeprefix(FOLDER))))
    else:
        todo = ATTACKS[name]
    field = Field(port, grpc_port, seconds)
    print("there", flush=True)
    try:
        async with asyncio.timeout(seconds + PATIENCE):
            await todo(field)
    except TimeoutError:
        field.result.note += " (the attack was ended)"
    return field.result


@contextlib.contextmanager
def attacking(
    name: str, port: int, grpc_port: int | None, seconds: float
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Runs an attack for the duration of the block. Yields a function that waits for its end and
    returns its result."""
    command = [sys.executable, "-m", "tests.faults.attackers", name, str(port)]
    command += [str(grpc_port or 0), str(seconds)]
    with started(command, grace=0, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None

        def result() -> dict[str, Any]:
            assert process.stdout is not None
            lines = process.stdout.read().splitlines()
            found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
            return found

        if process.stdout.readline() != "there\n":
            raise RuntimeError(f"the attack {name!r} did not begin")
        yield result


def main() -> None:
    name, port, grpc_port, seconds = sys.argv[1:]
    os.nice(5)  # an attacker's own machine is not the server's
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    result = uvloop.run(run(name, int(port), int(grpc_port) or None, float(seconds)))
    print(json.dumps(result.__dict__), flush=True)


if __name__ == "__main__":
    main()
