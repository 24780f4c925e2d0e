"""Measures the CPU time and the memory of decoding an image with `service.decoding`.

    python -m benchmarks.decode_cost            CPU time by image format and size
    python -m benchmarks.decode_cost --memory   memory of a process that decodes 64 megapixels

The first table also shows whether the service decodes such an image on the event loop or in a
decoder process. `EncodedImage.is_bounded` makes this decision with limits that were derived from
the first table. Each time is the minimum CPU time of several runs on one thread. The second table
can be measured on Linux only.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from service.decoding.image import identify

T = TypeVar("T")

SIZES = [(32, 32), (64, 64), (128, 128), (256, 256), (640, 480), (1920, 1080), (4000, 3000)]
"""Width and height in pixels of the images in the first table."""
LIMIT = (8000, 8000)
"""Width and height in pixels of the images in the second table."""

FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("RGB", "JPEG", {"quality": 85}),
    "JPEG progressive": ("RGB", "JPEG", {"quality": 85, "progressive": True}),
    "JPEG progressive 4:4:4": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "JPEG progressive CMYK": ("CMYK", "JPEG", {"progressive": True}),
    "PNG RGB": ("RGB", "PNG", {"compress_level": 1}),
    "PNG RGBA": ("RGBA", "PNG", {"compress_level": 1}),
    "PNG gray 16-bit": ("I;16", "PNG", {"compress_level": 1}),
    "PNG palette": ("P", "PNG", {"compress_level": 1}),
    "WebP": ("RGB", "WEBP", {"quality": 80, "method": 0}),
    "WebP lossless RGBA": ("RGBA", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
    "BMP": ("RGB", "BMP", {}),
    "GIF": ("P", "GIF", {}),
}


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    """Returns a picture of smooth shapes with noise, which compresses about as well as a photo."""
    random = np.random.default_rng(0)
    blocks = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
    smooth = blocks.resize(size, Image.Resampling.BICUBIC)
    grain = random.integers(-4, 5, (256, 256), np.int16)
    down, across = -(-size[1] // 256), -(-size[0] // 256)
    grain = np.tile(grain, (down, across))[: size[1], : size[0], None]
    photo = Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    if mode == "RGBA":
        photo.putalpha(photo.getchannel("G"))
    return photo.quantize(256) if mode == "P" else photo.convert(mode)


def encoded(name: str, size: tuple[int, int]) -> bytes:
    """Returns a picture, encoded in the format `name`, which is a key of `FORMATS`."""
    mode, kind, options = FORMATS[name]
    buffer = io.BytesIO()
    picture(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def min_cpu_seconds(work: Callable[[], object], budget: float = 0.3) -> float:
    """Returns the CPU seconds of the fastest of several runs of `work`.

    Runs `work` at least three times, and until all runs together took `budget` seconds.
    """
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 1000):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def row(name: str, size: tuple[int, int]) -> str:
    """Returns a row of the first table."""
    data = encoded(name, size)
    limit = size[0] * size[1]
    upload = identify(data, limit)
    header = min_cpu_seconds(lambda: [identify(data, limit) for _ in range(100)]) / 100
    decode = min_cpu_seconds(upload.decode)
    figures = f"{len(data) / 1024:8.0f}{header * 1e6:11.1f}{decode * 1e3:11.2f}"
    where = "event loop" if upload.is_bounded else "decoder"
    return f"{name:24}{f'{size[0]}x{size[1]}':>11}{figures}  {where}"


def time_table() -> None:
    """Prints the first table, the CPU times for all formats and sizes."""
    print(f"{'':24}{'size':>11}{'KiB':>8}{'header us':>11}{'decode ms':>11}")
    for name in FORMATS:
        for size in SIZES:
            print(row(name, size), flush=True)


def write(name: str, path: pathlib.Path) -> None:
    """Writes an image of the size `LIMIT`, in the format `name`, to a file."""
    path.write_bytes(encoded(name, LIMIT))


def peak() -> int:
    """Returns the peak memory of this process in KiB.

    `getrusage` is not used, because it includes the peak memory of the parent process.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def growth(path: pathlib.Path) -> float:
    """Decodes a file. Returns the MiB by which the peak memory of this process grows."""
    upload = identify(path.read_bytes(), LIMIT[0] * LIMIT[1])
    before = peak()
    upload.decode()
    return (peak() - before) / 1024


def in_new_process(work: Callable[..., T], *arguments: object) -> T:
    """Calls `work` in a new process, so that other work does not affect the peak memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(work, *arguments).result()


def memory_table() -> None:
    """Prints the second table, the memory that decoding an image of the size `LIMIT` takes."""
    pixels = LIMIT[0] * LIMIT[1]
    print(f"{LIMIT[0]}x{LIMIT[1]:<20}{'MiB':>8}{'bytes/pixel':>13}")
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            path = pathlib.Path(folder) / "image"
            in_new_process(write, name, path)
            grown = in_new_process(growth, path)
            print(f"{name:25}{grown:8.0f}{grown * 2**20 / pixels:13.1f}", flush=True)


def main() -> None:
    """Prints one of the two tables."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_cost", description=summary)
    parser.add_argument("--memory", action="store_true", help="print only the memory table")
    if parser.parse_args().memory:
        memory_table()
    else:
        time_table()


if __name__ == "__main__":
    main()
