"""How many of our files one upload passes through, in one process.

Each file is one more place that a reader has to open. The count covers the event loop and the
threads of the engine, from the request to the answer.
"""

from __future__ import annotations

import asyncio
import collections
import pathlib
import socket
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import orjson
import pytest

ROOT = pathlib.Path(__file__).parents[2]
MAX_FILES = 18
PACKAGES = ("batching", "model_store", "service")
REQUESTS = 8


class FileCounter:
    """Counts the calls into each of our files while `on`, in all threads that start later."""

    def __init__(self) -> None:
        self.on = False
        self.calls = collections.Counter[str]()
        self.changes = 0
        self._last = ""

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if self.on and event == "call":
            name = frame.f_code.co_filename
            if name.startswith(str(ROOT)):
                relative = name[len(str(ROOT)) + 1 :]
                if relative.startswith(PACKAGES):
                    self.calls[relative] += 1
                    self.changes += relative != self._last
                    self._last = relative


async def count(form: bool) -> dict[str, Any]:
    """Calls by file of one upload of a small JPEG: the median of several."""
    counter = FileCounter()
    threading.setprofile(counter)
    sys.setprofile(counter)
    from service.app import create_app
    from service.server.server import Server
    from service.settings import Settings
    from tests.service.synthetic import encode, flat

    settings = Settings(port=0)
    server = Server(create_app(settings), settings)
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listening]))
    reader, writer = await _connected(listening)
    body, kind = encode(flat("RGB", (200, 100, 50)), "JPEG"), "image/jpeg"
    if form:
        head = b'--x\r\nContent-Disposition: form-data; name="img"; filename="a.jpg"\r\n\r\n'
        body, kind = head + body + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"
    while await _status(reader, writer, "GET", "/readyz") != 200:  # noqa: ASYNC110  # it has to be polled
        await asyncio.sleep(0.1)
    found: list[dict[str, Any]] = []
    for _ in range(REQUESTS):
        await asyncio.sleep(0.02)  # what the last request left to do is done
        counter.calls.clear()
        counter.changes, counter.on = 0, True
        status = await _status(reader, writer, "POST", "/predict", body, kind)
        counter.on = False
        assert status == 200
        calls, changes = dict(sorted(counter.calls.items())), counter.changes
        found.append({"files": calls, "calls": sum(calls.values()), "changes": changes})
    writer.close()
    server.should_exit = True
    await serving
    # The median, since a timer such as uvicorn's may call into another file during a request.
    return sorted(found, key=lambda one: len(one["files"]))[REQUESTS // 2]


async def _connected(
    listening: socket.socket,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*listening.getsockname())


async def _status(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    method: str,
    path: str,
    body: bytes = b"",
    kind: str = "",
) -> int:
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split()[0])
    await reader.readexactly(length)
    return int(head.split()[1])


@pytest.mark.slow
@pytest.mark.parametrize(("form", "most"), [(False, MAX_FILES), (True, MAX_FILES + 1)])
def test_an_upload_passes_through_few_files(form: bool, most: int) -> None:
    """A raw upload of a small JPEG enters at most 18 of our files; a form one more."""
    command = [sys.executable, "-m", "tests.service.test_files_of_an_upload", *["form"] * form]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found = orjson.loads(result.stdout.splitlines()[-1])
    assert len(found["files"]) <= most, "\n".join(found["files"])


if __name__ == "__main__":
    import uvloop

    print(orjson.dumps(uvloop.run(count(form="form" in sys.argv))).decode())
