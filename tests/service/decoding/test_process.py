"""Real decoder processes: what they answer, what they survive, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from benchmarks.processes import started
from service.decoding.image import as_pixels, identify
from service.decoding.launch import Template
from service.decoding.picture import Fault
from service.decoding.process import DecoderEnded, DecoderProcess, ImageNotReceived
from service.errors import BadImage
from tests.service import synthetic
from tests.service.synthetic import encode
from tests.waiting import until

MAX_PIXELS = 64_000_000
MIB = 2**20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Invalid APNG:UserWarning"),
]


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


async def test_process_that_crashes_is_noticed(
    template: Template, process: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a decoder ends while it decodes an image, `decode` raises immediately."""
    photo = Image.effect_noise((1500, 1500), 50)
    image = identify(encode(photo, "WEBP", method=0), MAX_PIXELS)
    decoding = asyncio.create_task(process.decode(image, 10, 60))
    began = process._cpu_seconds()
    while process._cpu_seconds() < began + 0.001:  # it has received the image
        assert not decoding.done()
        await asyncio.sleep(0)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(DecoderEnded) as ended:
        await decoding
    assert ended.value.killed_for is None
    monkeypatch.setattr("service.decoding.process.EXIT_SECONDS", 60.0)
    assert await process.has_exited()
    assert await template.reap(process) == -signal.SIGKILL
    assert not process.is_usable


async def test_process_that_ends_before_it_receives_an_image_is_noticed(
    process: DecoderProcess,
) -> None:
    """The image has not been decoded, so it is not the cause."""
    os.kill(process.pid, signal.SIGSTOP)
    stat = pathlib.Path(f"/proc/{process.pid}/stat")
    await until(lambda: ") T " in stat.read_text())
    image = identify(encode(synthetic.CHART, "WEBP"), MAX_PIXELS)
    decoding = asyncio.create_task(process.decode(image, 10, 60))
    await asyncio.sleep(0)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ImageNotReceived):
        await decoding
    with pytest.raises(ImageNotReceived):  # the socket is closed
        await process.decode(image, 10, 60)


async def test_process_that_is_not_done_in_time_is_killed(process: DecoderProcess) -> None:
    """One that neither computes nor answers would keep its place for ever."""
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(DecoderEnded) as ended:
        await process.decode(identify(encode(synthetic.CHART, "WEBP"), MAX_PIXELS), 10, 0.1)
    assert ended.value.killed_for == "time"
    assert process.image_seconds >= 0.1


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
    held = process._held_seconds
    while process._held_seconds == held:  # noqa: ASYNC110  # a timer does it, and no event tells
        await asyncio.sleep(0.001)
    os.kill(process.pid, signal.SIGCONT)
    assert (await decoding)[0] == 0


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
    """It gets no image after it has sent something without an image."""
    process, theirs, _ = captured
    assert process.is_usable
    theirs.send(b"\0" + bytes(32 * 32 * 3))
    assert not process.is_usable


async def test_captured_decoder_that_sleeps_is_killed(
    captured: tuple[DecoderProcess, socket.socket, int],
) -> None:
    """Decoding never sleeps. The time until then is charged to the client."""
    process, theirs, _ = captured
    image = identify(encode(synthetic.CHART, "PNG"), MAX_PIXELS)
    decoding = asyncio.create_task(process.decode(image, 10, 60))
    async with asyncio.timeout(60):
        while process._killed_for is None:  # noqa: ASYNC110  # a timer does it, and no event tells
            await asyncio.sleep(0.001)
    theirs.close()
    with pytest.raises(DecoderEnded) as ended:
        await decoding
    assert ended.value.killed_for == "sleep"
    assert process.image_seconds > 0


async def test_captured_decoder_that_sleeps_in_steps_is_killed(
    captured: tuple[DecoderProcess, socket.socket, int],
) -> None:
    """The two checks that find it asleep need not be consecutive, but belong to the same image."""
    process, theirs, _ = captured
    image = identify(encode(synthetic.CHART, "PNG"), MAX_PIXELS)
    states = [False, True]
    process._sleeps = lambda: bool(states) and states.pop()  # type: ignore[method-assign]
    decoding = asyncio.create_task(process.decode(image, 10, 60))
    async with asyncio.timeout(60):
        while states:  # noqa: ASYNC110  # a timer does it, and no event tells
            await asyncio.sleep(0.001)
    theirs.send(b"\0")
    assert (await decoding)[0] == 0
    states = [True, False, False, True]
    decoding = asyncio.create_task(process.decode(image, 10, 60))
    async with asyncio.timeout(60):
        while process._killed_for is None:  # noqa: ASYNC110  # a timer does it
            await asyncio.sleep(0.001)
    assert not states
    theirs.close()
    with pytest.raises(DecoderEnded):
        await decoding


async def unchecked(process: DecoderProcess, cpu_seconds: float) -> asyncio.Task[tuple[int, bytes]]:
    """Begin to decode an image. The test itself calls `_check`."""
    image = identify(encode(synthetic.CHART, "PNG"), MAX_PIXELS)
    decoding = asyncio.create_task(process.decode(image, cpu_seconds, 60))
    await asyncio.sleep(0)
    process._timer.cancel()
    return decoding


async def test_process_that_answers_when_it_is_killed_has_ended(
    captured: tuple[DecoderProcess, socket.socket, int],
) -> None:
    """The result may have been sent immediately before the server killed the process."""
    process, theirs, _ = captured
    decoding = await unchecked(process, 0.0)
    theirs.send(b"\0")
    process._check(0, 60, 0)
    with pytest.raises(DecoderEnded) as ended:
        await decoding
    assert ended.value.killed_for == "cpu_time"


async def test_process_waits_a_short_time_for_the_exit(
    captured: tuple[DecoderProcess, socket.socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captured decoder may close its socket, or send data, and not exit."""
    process, theirs, _ = captured
    assert not await process.has_exited()
    monkeypatch.setattr("service.decoding.process.EXIT_SECONDS", 600.0)
    theirs.send(b"x")
    assert not await process.has_exited()
    process._link.recv(1)
    theirs.close()
    exit_is_noticed = asyncio.create_task(process.has_exited())
    await asyncio.sleep(0)
    process.kill()
    assert await exit_is_noticed


async def test_killed_process_is_not_usable(process: DecoderProcess) -> None:
    """Not even before the system has ended it."""
    assert process.is_usable
    process.kill()
    assert process.was_killed and not process.is_usable


async def test_process_that_has_answered_is_not_killed_for_its_sleep(
    captured: tuple[DecoderProcess, socket.socket, int],
) -> None:
    """The event loop may be late, and check the decoder before it receives the answer."""
    process, theirs, _ = captured
    decoding = await unchecked(process, 10)
    while not process._sleeps():  # noqa: ASYNC110  # the process may just have been started
        await asyncio.sleep(0.001)
    theirs.send(b"\0")
    process._check(10, 60, 0, slept=True)
    assert (await decoding)[0] == 0
    assert process._killed_for is None


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
