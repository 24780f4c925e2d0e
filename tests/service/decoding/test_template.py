"""The template and its decoders: what they share, and what they answer."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import sys
from collections.abc import AsyncIterator

import pytest
from PIL import Image

from benchmarks.processes import started
from service.decoding import launch
from service.decoding.image import identify
from service.decoding.launch import Template
from service.decoding.limits import HEAP_MEMORY, MIN_EXPENSIVE_MEMORY
from service.decoding.picture import Fault
from service.decoding.process import DecoderProcess
from service.decoding.template import FORK, MAX_MESSAGE, ORDER, REAP, REQUEST, RESULT
from tests.service import synthetic
from tests.service.decoding.decoded import MAX_PIXELS
from tests.service.synthetic import encode

MIB = 2**20
ROOT = pathlib.Path(__file__).parents[3]

pytestmark = pytest.mark.slow


async def test_processes_share_nothing_with_the_server(
    process: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder has no variable of the server's environment, and no descriptor but two."""
    proc = pathlib.Path(f"/proc/{process.pid}")
    variables = proc.joinpath("environ").read_bytes().split(b"\0")[:-1]
    names = {variable.partition(b"=")[0].decode() for variable in variables}
    assert {name for name in names if not name.startswith("MALLOC_")} <= {"LD_LIBRARY_PATH"}
    assert {path.name for path in proc.joinpath("fd").iterdir()} == {"0", "1"}


async def test_decoders_are_killed_first_when_memory_runs_out(process: DecoderProcess) -> None:
    """The kernel prefers them to the server."""
    proc = pathlib.Path(f"/proc/{process.pid}")
    preference = proc.joinpath("oom_score_adj").read_bytes()
    assert preference == b"1000\n"


def _photo(side: int) -> Image.Image:
    return Image.linear_gradient("L").resize((side, side)).convert("RGB")


_LEAKING = """
import sys; sys.path[:] = {path!r}
from service.decoding import template
def leak(*image):
    taken.append(bytearray(60 * 2**20) if not taken else b"")
    return decode(*image)
taken, decode, template._decode = [], template._decode, leak
template.main({descriptor})
"""


@pytest.fixture
async def leaking(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Template]:
    """A template of decoders that take 60 MiB forever when they get their first image."""
    monkeypatch.setattr(launch, "_RUN", _LEAKING)
    template = Template()
    await template.start()
    yield template
    template.close()


@pytest.mark.parametrize(("kind", "side"), [("JPEG", 2600), ("WEBP", 1900), ("BMP", 3000)])
async def test_process_says_when_it_lacks_memory(leaking: Template, kind: str, side: int) -> None:
    """Where earlier images have taken it. Libraries then call the image damaged, and the process
    cannot even hold a long one."""
    process = await leaking.fork(96 * MIB, 0)
    await process.ready()
    small = identify(encode(synthetic.CHART, "PNG"), MAX_PIXELS)
    assert (await process.decode(small, 10, 60))[0] == 0
    options = {"progressive": True, "subsampling": 0} if kind == "JPEG" else {}
    large = identify(encode(_photo(side), kind, **options), MAX_PIXELS)
    assert (await process.decode(large, 10, 60))[0] == Fault.OUT_OF_MEMORY
    process.close()


async def test_used_process_says_that_a_large_image_is_damaged(template: Template) -> None:
    """An image that nearly takes all memory is not decoded again in a new process, which would have
    no more memory for it."""
    process = await template.fork(MIN_EXPENSIVE_MEMORY, 0)
    await process.ready()
    small = identify(encode(synthetic.CHART, "PNG"), MAX_PIXELS)
    assert (await process.decode(small, 10, 60))[0] == 0
    data = encode(_photo(5700), "PNG", compress_level=1)
    damaged = identify(data[: len(data) // 2], MAX_PIXELS)
    assert damaged.memory + HEAP_MEMORY > MIN_EXPENSIVE_MEMORY
    assert (await process.decode(damaged, 10, 60))[0] == Fault.DAMAGED
    process.close()


def test_template_forks_and_reaps_by_messages() -> None:
    """The template sends its measurement, then one result for each order, and ends when the server
    closes the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "service.decoding.template", str(theirs.fileno())]
    with (
        started(command, cwd=ROOT, pass_fds=[theirs.fileno()]) as process,
        ours,
        open(os.memfd_create("image"), "rb+", buffering=0) as file,
    ):
        theirs.close()
        ours.settimeout(60)
        assert json.loads(ours.recv(MAX_MESSAGE)) > 0
        server, decoder = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server, decoder:
            order = ORDER.pack(FORK, 96 * MIB, 0)
            socket.send_fds(ours, [order], [decoder.fileno(), file.fileno()])
            (pid,) = RESULT.unpack(ours.recv(MAX_MESSAGE))
            decoder.close()
            server.settimeout(60)
            assert isinstance(json.loads(server.recv(MAX_MESSAGE)), list)
            data = encode(synthetic.CHART, "PNG")
            file.write(data)
            server.send(REQUEST.pack(len(data), MIB, b"PNG", 32, 32, MAX_PIXELS))
            assert server.recv(MAX_MESSAGE) == b"\0" + synthetic.CHART.tobytes()
            server.send(REQUEST.pack(len(data), MIB, b"PNG", 33, 32, MAX_PIXELS))
            assert server.recv(MAX_MESSAGE)[0] == Fault.TWO_SIZES
            ours.send(ORDER.pack(REAP, pid, 0))
            assert RESULT.unpack(ours.recv(MAX_MESSAGE)) == (-signal.SIGKILL,)
        ours.close()
        assert process.wait(60) == 0


async def test_decoder_answers_no_request_to_free_memory(process: DecoderProcess) -> None:
    """A request of 0 bytes has no answer, and the next image is decoded."""
    image = identify(encode(synthetic.CHART, "WEBP", lossless=True), MAX_PIXELS)
    assert (await process.decode(image, 10, 60))[0] == 0
    process.free_memory()
    assert await process.decode(image, 10, 60) == (0, synthetic.CHART.tobytes())
