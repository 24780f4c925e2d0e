"""Runs several load generators, each in its own process, all starting at the same moment."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier

import uvloop

from shoal.load.generator import Generator, Job, Samples

Progress = Callable[[int, int], None]
"""Called with the requests answered and failed so far, of all processes together."""
START_TIMEOUT = 60.0
"""Seconds within which all processes must have started."""


def run(jobs: Sequence[Job], progress: Progress) -> list[Samples]:
    """Runs each job in its own process.

    Returns:
        What each process measured, in the order of `jobs`.

    Raises:
        RuntimeError: A process died.
    """
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(len(jobs))
    receivers: list[multiprocessing.connection.Connection] = []
    processes = []
    try:
        for job in jobs:
            receiver, sender = context.Pipe(duplex=False)
            receivers.append(receiver)
            process = context.Process(target=_generate, args=(job, sender, start), daemon=True)
            processes.append(process)
            process.start()
            sender.close()
        return _collect(receivers, progress)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()  # has no effect on those that have sent their samples and ended
                process.join()


def _collect(
    receivers: Sequence[multiprocessing.connection.Connection], progress: Progress
) -> list[Samples]:
    """Reads messages until every process has sent its samples."""
    counts: dict[int, tuple[int, int]] = {}
    samples: dict[int, Samples] = {}
    while len(samples) < len(receivers):
        for ready in multiprocessing.connection.wait(receivers):
            number = receivers.index(ready)
            try:
                message = receivers[number].recv()
            except EOFError:
                if number not in samples:
                    raise RuntimeError(
                        "A load generator process died. Its error is printed above"
                    ) from None
                continue
            if isinstance(message, Samples):
                samples[number] = message
            else:
                counts[number] = message
                answered, failed = (sum(part) for part in zip(*counts.values(), strict=True))
                progress(answered, failed)
    return [samples[number] for number in range(len(receivers))]


def _generate(
    job: Job, pipe: multiprocessing.connection.Connection[object, object], start: Barrier
) -> None:
    """Runs in the process of a generator."""
    generator = Generator(job, lambda answered, failed: pipe.send((answered, failed)))
    start.wait(START_TIMEOUT)
    pipe.send(uvloop.run(generator.run()))
    pipe.close()
