"""Decoder processes against threads of this process: latency alone, and throughput.

    python -m benchmarks.decoders              a table, some minutes
    python -m benchmarks.decoders --rounds 9

The same images are decoded by `service.decoding.pool.Decoders` and by as many threads, in turns of
a second, so that what else the machine does is the same for both. Throughput is the median of the
ratios of adjoining turns, with as many images under way as there are decoders. Both decode by the
same code, Pillow's; the processes have an allocator that keeps freed memory, and pay for the way
there and back.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import uvloop

from benchmarks.decode_cost import encoded
from model_store.cgroup import cores
from service.decoding.image import EncodedImage, Pixels, identify
from service.decoding.limits import limits
from service.decoding.pool import Decoders

IMAGES = {
    "JPEG 640 x 480": ("JPEG", (640, 480)),
    "JPEG 1600 x 1200": ("JPEG", (1600, 1200)),
    "JPEG 4000 x 3000": ("JPEG", (4000, 3000)),
    "progressive JPEG 4000 x 3000": ("JPEG progressive", (4000, 3000)),
    "WebP 1600 x 1200": ("WebP", (1600, 1200)),
    "WebP 4000 x 3000": ("WebP", (4000, 3000)),
    "PNG 800 x 600": ("PNG RGB", (800, 600)),
    "PNG 4000 x 3000": ("PNG RGB", (4000, 3000)),
    "GIF 800 x 600": ("GIF", (800, 600)),
    "BMP 800 x 600": ("BMP", (800, 600)),
}
MEMORY = 8 * 2**30

Decode = Callable[[EncodedImage], Awaitable[Pixels]]


async def alone(decode: Decode, image: EncodedImage, seconds: float) -> float:
    """Median milliseconds of one image at a time."""
    took: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(took) < 3:
        began = time.perf_counter()
        await decode(image)
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


async def throughput(decode: Decode, image: EncodedImage, at_once: int, seconds: float) -> float:
    """Images per second with `at_once` of them under way."""
    began = time.perf_counter()
    done = 0

    async def repeat() -> None:
        nonlocal done
        while time.perf_counter() < began + seconds:
            await decode(image)
            done += 1

    await asyncio.gather(*(repeat() for _ in range(at_once)))
    return done / (time.perf_counter() - began)


async def main(rounds: int, seconds: float) -> None:
    count = cores()
    loop = asyncio.get_running_loop()
    decoders = Decoders(limits(count, MEMORY, 10.0), on_kill=print)
    with ThreadPoolExecutor(count) as threads:

        async def by_threads(image: EncodedImage) -> Pixels:
            return await loop.run_in_executor(threads, image.decode)

        async def by_processes(image: EncodedImage) -> Pixels:
            return await decoders.run(image, "benchmark", 60.0)

        print(f"{count} cores, {rounds} rounds of {seconds:g} s")
        print("| picture | thread, ms | process, ms | throughput, process / thread | error |")
        print("|---|---|---|---|---|")
        async with decoders.running():
            for name, (kind, size) in IMAGES.items():
                image = identify(encoded(kind, size), 64_000_000)
                await by_processes(image)
                lone: dict[Decode, list[float]] = {by_threads: [], by_processes: []}
                ratios = []
                for _ in range(rounds):
                    for decode, times in lone.items():
                        times.append(await alone(decode, image, seconds / 2))
                    before = await throughput(by_threads, image, count, seconds)
                    now = await throughput(by_processes, image, count, seconds)
                    ratios.append(now / before)
                thread, process = (statistics.median(times) for times in lone.values())
                error = statistics.stdev(ratios) / len(ratios) ** 0.5
                ratio = statistics.median(ratios)
                print(
                    f"| {name}, {len(image.data) / 1000:.0f} kB | {thread:.2f} | {process:.2f} "
                    f"| {ratio:.2f} | {error:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoders")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn (%(default)s)")
    arguments = parser.parse_args()
    uvloop.run(main(arguments.rounds, arguments.seconds))
