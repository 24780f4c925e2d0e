"""Runs several load generators, each in its own process. All generators start at the same time."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier

import uvloop

from shoal.load.generator import Generator, Job, Samples

Progress = Callable[[int, int], None]
"""Function that is called with the total numbers of requests answered and failed so far."""
START_TIMEOUT = 60.0
"""Timeout in seconds for the start of all processes."""


def run(jobs: Sequence[Job], progress: Progress) -> list[Samples]:
    """Runs each job in its own process.

    Args:
        jobs: Loads to generate.
        progress: Function that is called during the load.

    Returns:
        The measurements of each process, in the order of `jobs`.

    Raises:
        RuntimeError: A process ended before it returned its measurements.
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
                process.kill()  # has no effect on a process that has ended
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
                        "A process of the load generator ended early. "
                        "The error of the process is printed above"
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
    """Generates the load of one job. Runs in the job's own process."""
    generator = Generator(job, lambda answered, failed: pipe.send((answered, failed)))
    start.wait(START_TIMEOUT)
    pipe.send(uvloop.run(generator.run()))
    pipe.close()
