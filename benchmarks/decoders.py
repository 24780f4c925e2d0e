"""Compares decoder processes with decoder threads in latency and throughput.

    python -m benchmarks.decoders              (takes some minutes)
    python -m benchmarks.decoders --rounds 9

The decoder processes of `service.decoding.pool.Decoders` and the same number of threads decode the
same images with the same code. In each round, processes and threads are measured one after the
other, for about a second each, so that other work on the machine affects both equally. The latency
is measured with one image in flight. The throughput is measured with one image in flight for each
process or thread. In each round, the throughput of processes is divided by the throughput of
threads. The table shows the median of these ratios.

Processes differ from threads in two ways. The service must send each image to a process and receive
the pixels. The memory allocator of a process keeps freed memory for the next image.
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
    """Decodes an image repeatedly, one at a time. Returns the median latency in milliseconds."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(latencies) < 3:
        began = time.perf_counter()
        await decode(image)
        latencies.append(1000 * (time.perf_counter() - began))
    return statistics.median(latencies)


async def throughput(decode: Decode, image: EncodedImage, count: int, seconds: float) -> float:
    """Decodes an image repeatedly, several at the same time. Returns the images per second.

    Args:
        decode: Decodes the image.
        image: The image.
        count: Number of images in flight.
        seconds: Length of the measurement in seconds.
    """
    began = time.perf_counter()
    done = 0

    async def repeat() -> None:
        nonlocal done
        while time.perf_counter() < began + seconds:
            await decode(image)
            done += 1

    await asyncio.gather(*(repeat() for _ in range(count)))
    return done / (time.perf_counter() - began)


async def main(rounds: int, seconds: float) -> None:
    """Measures all images and prints a Markdown table."""
    count = cores()
    loop = asyncio.get_running_loop()
    decoders = Decoders(limits(count, MEMORY, 10.0), on_kill=print)
    with ThreadPoolExecutor(count) as threads:

        async def by_threads(image: EncodedImage) -> Pixels:
            return await loop.run_in_executor(threads, image.decode)

        async def by_processes(image: EncodedImage) -> Pixels:
            return await decoders.run(image, "benchmark", 60.0)

        print(f"{count} cores, {rounds} rounds of {seconds:g} s")
        print("| image | thread, ms | process, ms | process / thread | standard error |")
        print("|---|---|---|---|---|")
        async with decoders.running():
            for name, (kind, size) in IMAGES.items():
                image = identify(encoded(kind, size), 64_000_000)
                await by_processes(image)
                latencies: dict[Decode, list[float]] = {by_threads: [], by_processes: []}
                ratios = []
                for _ in range(rounds):
                    for decode, times in latencies.items():
                        times.append(await alone(decode, image, seconds / 2))
                    before = await throughput(by_threads, image, count, seconds)
                    now = await throughput(by_processes, image, count, seconds)
                    ratios.append(now / before)
                thread, process = (statistics.median(times) for times in latencies.values())
                error = statistics.stdev(ratios) / len(ratios) ** 0.5
                ratio = statistics.median(ratios)
                print(
                    f"| {name}, {len(image.data) / 1000:.0f} kB | {thread:.2f} | {process:.2f} "
                    f"| {ratio:.2f} | {error:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="number of rounds, at least 2 (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="length of each measurement in seconds (default: %(default)s)",
    )
    arguments = parser.parse_args()
    uvloop.run(main(arguments.rounds, arguments.seconds))
