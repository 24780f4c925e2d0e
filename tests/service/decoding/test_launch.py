"""The template of decoder processes, as the server starts, uses and ends it."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys

import pytest

from benchmarks.processes import started, wait_until_ended
from service.decoding.image import identify
from service.decoding.launch import Template
from service.decoding.process import DecoderEnded, ImageNotReceived, StartFailed
from tests.service import synthetic
from tests.service.decoding.decoded import MAX_PIXELS
from tests.service.synthetic import encode

MIB = 2**20

pytestmark = pytest.mark.slow


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
        with pytest.raises((DecoderEnded, ImageNotReceived)):
            await process.decode(identify(encode(synthetic.CHART, "WEBP"), MAX_PIXELS), 10, 60)
        process.close()


async def test_template_tells_how_a_decoder_ended(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is the signal that ended the decoder. A decoder that runs is killed."""
    processes = [await template.fork(96 * MIB, 0) for _ in range(3)]
    for process in processes:
        await process.ready()
    os.kill(processes[0].pid, signal.SIGSEGV)
    os.kill(processes[1].pid, signal.SIGKILL)
    monkeypatch.setattr("service.decoding.process.EXIT_SECONDS", 60.0)
    assert await processes[0].has_exited()
    assert await template.reap(processes[0]) == -signal.SIGSEGV
    assert await template.reap(processes[1]) == -signal.SIGKILL
    assert await template.reap(processes[2]) == -signal.SIGKILL
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


async def test_template_measures_this_machine(template: Template) -> None:
    """The CPU time of the sample images is known when the template has started."""
    assert 0.0001 < template.sample_seconds < 10


async def test_template_forks_decoders_of_different_memory_and_niceness(
    template: Template,
) -> None:
    """Each decoder has the niceness that its caller asks for, above that of the server."""
    for nicer in (0, 5):
        process = await template.fork(96 * MIB, nicer)
        await process.ready()
        niceness = os.getpriority(os.PRIO_PROCESS, process.pid)
        assert niceness == min(os.getpriority(os.PRIO_PROCESS, 0) + nicer, 19)
        process.close()


async def test_template_reaps_each_decoder_once(template: Template) -> None:
    """Reaping again returns the same exit code, since the process id may be another's by then."""
    process = await template.fork(96 * MIB, 0)
    await process.ready()
    os.kill(process.pid, signal.SIGKILL)
    assert await template.reap(process) == -signal.SIGKILL
    assert await template.reap(process) == -signal.SIGKILL
    process.close()


async def test_template_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says that the template cannot be started, and why."""
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    template = Template()
    with pytest.raises(StartFailed, match=r"cannot be started: .*nowhere"):
        await template.start()
    template.close()


async def test_closing_a_template_twice_does_nothing(template: Template) -> None:
    """A closed template has ended, and forks no decoder."""
    template.close()
    template.close()
    assert template.has_ended
    with pytest.raises(StartFailed):
        await template.fork(96 * MIB, 0)
