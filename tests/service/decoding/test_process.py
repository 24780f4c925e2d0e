"""Real decoder processes: what they answer, what they survive, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from benchmarks.processes import started, wait_until_ended
from service.decoding.image import as_pixels, identify
from service.decoding.launch import Template
from service.decoding.picture import Fault
from service.decoding.process import (
    DecoderEnded,
    DecoderGone,
    DecoderProcess,
    StartFailed,
)
from service.decoding.template import LIVED_ON
from service.errors import BadImage
from tests.service import synthetic
from tests.service.synthetic import encode

MAX_PIXELS = 64_000_000
MIB = 2**20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Invalid APNG:UserWarning"),
]


@pytest.fixture
async def template() -> AsyncIterator[Template]:
    template = Template()
    await template.start()
    yield template
    template.close()


@pytest.fixture
async def process(template: Template) -> AsyncIterator[DecoderProcess]:
    process = await template.fork(96 * MIB, 0)
    await process.ready()
    yield process
    process.close()


async def test_process_gives_the_same_pixels_as_decoding_here(process: DecoderProcess) -> None:
    """Every kind of file that is served comes out as it does in this process: nothing that Pillow
    needs is missing in the sandbox."""
    for name, data in synthetic.served().items():
        image = identify(data, MAX_PIXELS)
        fault, content = await process.decode(image, 10, 60)
        assert fault == 0, (name, content)
        assert np.array_equal(as_pixels(content), image.decode()), name


async def test_process_survives_damaged_images(process: DecoderProcess) -> None:
    """Each is answered with a fault, and the next image is decoded."""
    for name, data in synthetic.broken().items():
        with suppress(BadImage):  # rejected by its header
            fault, _ = await process.decode(identify(data, MAX_PIXELS), 10, 60)
            assert fault in set(Fault), name
    fault, _ = await process.decode(identify(encode(synthetic.CHART, "PNG"), MAX_PIXELS), 10, 60)
    assert fault == 0


async def test_process_reports_the_lack_of_memory(process: DecoderProcess) -> None:
    """An image that needs more than the process may take gets a fault; the process lives on."""
    large = encode(Image.new("RGB", (6000, 6000)), "PNG", compress_level=1)
    assert (await process.decode(identify(large, MAX_PIXELS), 10, 60))[0] == Fault.OUT_OF_MEMORY
    small = identify(encode(synthetic.CHART, "PNG"), MAX_PIXELS)
    assert (await process.decode(small, 10, 60))[0] == 0


async def test_process_is_killed_for_its_cpu_time(process: DecoderProcess) -> None:
    """One that takes longer than allowed is killed; its caller learns why."""
    large = encode(Image.new("RGB", (2000, 2000)), "WEBP", method=0)
    with pytest.raises(DecoderEnded) as ended:
        await process.decode(identify(large, MAX_PIXELS), 0.001, 60)
    assert ended.value.killed_for == "cpu_time"


async def test_process_is_not_killed_for_time_in_which_it_does_not_run(
    process: DecoderProcess,
) -> None:
    """The limit is on CPU time: a process that stands still for longer is not killed."""
    image = identify(encode(synthetic.CHART, "WEBP"), MAX_PIXELS)
    os.kill(process.pid, signal.SIGSTOP)
    decoding = asyncio.create_task(process.decode(image, 0.05, 60))
    await asyncio.sleep(0.3)  # six times the limit
    assert not decoding.done()
    os.kill(process.pid, signal.SIGCONT)
    assert (await decoding)[0] == 0


async def test_process_that_crashes_is_noticed(template: Template, process: DecoderProcess) -> None:
    """Whatever ends it: its caller is told at once."""
    os.kill(process.pid, signal.SIGSTOP)
    image = identify(encode(synthetic.CHART, "WEBP"), MAX_PIXELS)
    decoding = asyncio.create_task(process.decode(image, 10, 60))
    await asyncio.sleep(0)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(DecoderEnded) as ended:
        await decoding
    assert ended.value.killed_for is None
    await template.reap(process)
    assert not process.is_alive


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


SERVER = """
import asyncio
from service.decoding.launch import Template

async def main():
    template = Template()
    await template.start()
    process = await template.fork(96 * 2**20, 0)
    await process.ready()
    print(process.pid, template._process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_killing_the_server_ends_all_decoders() -> None:
    """Nothing of them is left, though the server had no time to end them."""
    with started([sys.executable, "-c", SERVER], grace=0, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        pids = [int(pid) for pid in server.stdout.readline().split()]
        assert len(pids) == 2
        server.kill()
        assert wait_until_ended(pids, 60)


async def test_closing_the_template_ends_all_decoders(template: Template) -> None:
    """Nothing of them is left, also when they are busy."""
    processes = [await template.fork(96 * MIB, 0) for _ in range(2)]
    for process in processes:
        await process.ready()
    template.close()
    for process in processes:
        with pytest.raises((DecoderEnded, DecoderGone)):
            await process.decode(identify(encode(synthetic.CHART, "WEBP"), MAX_PIXELS), 10, 60)
        process.close()


async def test_template_tells_how_a_decoder_ended(template: Template) -> None:
    """By its signal, or by its exit code; and one that lives on is killed."""
    processes = [await template.fork(96 * MIB, 0) for _ in range(3)]
    for process in processes:
        await process.ready()
    os.kill(processes[0].pid, signal.SIGSEGV)
    os.kill(processes[1].pid, signal.SIGKILL)
    assert await template.reap(processes[0]) == -signal.SIGSEGV
    assert await template.reap(processes[1]) == -signal.SIGKILL
    assert await template.reap(processes[2]) == LIVED_ON
    for process in processes:
        process.close()


async def test_template_that_does_not_answer_is_given_up(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late answer would be taken for that to the next order: another decoder's process id."""
    monkeypatch.setattr("service.decoding.launch.START_SECONDS", 0.1)
    assert template._process is not None
    os.kill(template._process.pid, signal.SIGSTOP)
    with pytest.raises(StartFailed):
        await template.fork(96 * MIB, 0)
    assert template.has_ended


async def test_template_survives_the_lack_of_descriptors(template: Template) -> None:
    """A decoder cannot be started then, however few are missing; the template, and the decoders
    that there are, live on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    started = 0
    for more in range(8):
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used - 1 + more, hard))
        try:
            process = await template.fork(96 * MIB, 0)
        except StartFailed:
            assert not started
        else:
            started += 1
            await process.ready()
            process.close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not template.has_ended
    assert 0 < started < 8


async def test_template_that_ends_is_noticed(template: Template) -> None:
    """At once, and not only with the next order."""
    assert template._process is not None
    template._process.kill()
    async with asyncio.timeout(60):
        await template.ended.wait()
    with pytest.raises(StartFailed):
        await template.fork(96 * MIB, 0)


async def test_process_that_is_not_done_in_time_is_killed(process: DecoderProcess) -> None:
    """One that neither computes nor answers would keep its place for ever."""
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(DecoderEnded) as ended:
        await process.decode(identify(encode(synthetic.CHART, "WEBP"), MAX_PIXELS), 10, 0.1)
    assert ended.value.killed_for == "time"


class LateLoop:
    """The event loop of a server that was paused: its clock has gone on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.paused = 0.0
        self.call_later, self.sock_recv = self._loop.call_later, self._loop.sock_recv

    def time(self) -> float:
        return self._loop.time() + self.paused


async def test_process_is_not_killed_for_time_in_which_the_server_did_not_run(
    process: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause of the whole machine or container takes no time of an image."""
    monkeypatch.setattr("service.decoding.process.MAX_WAIT", 0.01)
    process._loop = loop = cast(Any, LateLoop())
    os.kill(process.pid, signal.SIGSTOP)
    image = identify(encode(synthetic.CHART, "WEBP"), MAX_PIXELS)
    decoding = asyncio.create_task(process.decode(image, 10, 60))
    await asyncio.sleep(0)
    loop.paused += 3600
    held = process.held_seconds
    while process.held_seconds == held:  # noqa: ASYNC110  # a timer does it, and no event tells
        await asyncio.sleep(0.001)
    os.kill(process.pid, signal.SIGCONT)
    assert (await decoding)[0] == 0


def _photo(side: int) -> Image.Image:
    return Image.linear_gradient("L").resize((side, side)).convert("RGB")


@pytest.mark.parametrize(("kind", "side"), [("JPEG", 2600), ("WEBP", 1900), ("BMP", 3000)])
async def test_process_says_when_it_lacks_memory(template: Template, kind: str, side: int) -> None:
    """Where earlier images may have taken it. Libraries then call the image damaged, and the
    process cannot even hold a long one."""
    process = await template.fork(24 * MIB, 0)
    await process.ready()
    small = identify(encode(synthetic.CHART, "PNG"), MAX_PIXELS)
    assert (await process.decode(small, 10, 60))[0] == 0
    options = {"progressive": True, "subsampling": 0} if kind == "JPEG" else {}
    large = identify(encode(_photo(side), kind, **options), MAX_PIXELS)
    assert (await process.decode(large, 10, 60))[0] == Fault.OUT_OF_MEMORY
    process.close()


@pytest.fixture
async def captured() -> AsyncIterator[tuple[DecoderProcess, socket.socket, int]]:
    """A decoder that does what the test does: the server's side, its socket, and its file."""
    with started(["sleep", "600"], grace=0) as sleeper:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        file = os.memfd_create("image")
        process = DecoderProcess(sleeper.pid, ours, os.dup(file))
        yield process, theirs, file
        process.close()
        theirs.close()
        os.close(file)


async def test_captured_decoder_cannot_answer_for_the_next_image(
    captured: tuple[DecoderProcess, socket.socket, int],
) -> None:
    """What it sends before it is given an image ends it."""
    process, theirs, _ = captured
    theirs.send(b"\0" + bytes(32 * 32 * 3))
    with pytest.raises(DecoderGone):
        await process.decode(identify(encode(synthetic.CHART, "PNG"), MAX_PIXELS), 10, 60)


async def test_captured_decoder_sees_nothing_of_an_earlier_image(
    captured: tuple[DecoderProcess, socket.socket, int],
) -> None:
    """Its file is as long as the image that it is given."""
    process, theirs, file = captured
    for side in 300, 20:
        data = encode(Image.effect_noise((side, side), 50), "PNG")
        decoding = asyncio.create_task(process.decode(identify(data, MAX_PIXELS), 10, 60))
        await asyncio.sleep(0)
        assert os.pread(file, 2 * MIB, 0) == data
        theirs.send(b"\0")
        await decoding


async def test_captured_decoder_that_computes_for_itself_is_noticed(
    process: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU time between two images is compared with what freeing memory takes."""
    await process.decode(identify(encode(synthetic.CHART, "WEBP"), MAX_PIXELS), 10, 60)
    assert not process.computes_for_itself()
    monkeypatch.setattr("service.decoding.process.IDLE_CPU_SECONDS", -1.0)
    assert process.computes_for_itself()


async def test_process_kills_no_other_process(
    captured: tuple[DecoderProcess, socket.socket, int],
) -> None:
    """Its process id may be another's after its end."""
    process, _, _ = captured
    process.kill()
    other = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220  # it does not wait
    process.pid = other.pid
    process.kill()
    other.terminate()
    assert other.wait() == -signal.SIGTERM
