"""Several generators, each in a process of its own, beginning together."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import random
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier

import uvloop

from shoal.load.generator import Generator, Job, Outcome

Progress = Callable[[int, int], None]
"""Is told answered and failed requests so far, of all processes together."""
START_UP = 60.0


def run(jobs: Sequence[Job], progress: Progress) -> list[Outcome]:
    """One outcome a job. Raises RuntimeError if a process dies."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(len(jobs))
    ours = []
    processes = []
    for job in jobs:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(job, sender, together), daemon=True)
        process.start()
        sender.close()
        ours.append(receiver)
        processes.append(process)
    counts: dict[int, tuple[int, int]] = {}
    outcomes: dict[int, Outcome] = {}
    while len(outcomes) < len(jobs):
        for ready in multiprocessing.connection.wait(ours):
            number = ours.index(ready)  # type: ignore[arg-type]  # what we gave is what we get
            try:
                told = ours[number].recv()
            except EOFError:
                if number not in outcomes:
                    raise RuntimeError("a load generator died; its error is above") from None
                continue
            if isinstance(told, Outcome):
                outcomes[number] = told
            else:
                counts[number] = told
                answered, failed = (sum(part) for part in zip(*counts.values(), strict=True))
                progress(answered, failed)
    for process in processes:
        process.join()
    return [outcomes[number] for number in range(len(jobs))]


def poisson(rate: float, duration: float, seed: int) -> list[float]:
    """Independent callers."""
    source = random.Random(seed)
    times = []
    now = 0.0
    while (now := now + source.expovariate(rate)) < duration:
        times.append(now)
    return times


def constant(rate: float, duration: float, seed: int) -> list[float]:
    """One every 1/rate seconds, beginning somewhere in the first such span."""
    offset = random.Random(seed).random()
    return [(number + offset) / rate for number in range(round(rate * duration))]


def _work(
    job: Job, pipe: multiprocessing.connection.Connection[object, object], together: Barrier
) -> None:
    generator = Generator(job, lambda answered, failed: pipe.send((answered, failed)))
    together.wait(START_UP)
    pipe.send(uvloop.run(generator.run()))
    pipe.close()
