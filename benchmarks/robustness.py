"""Accuracy on held-out training images that were changed as photographs differ from CIFAR-10.

    python -m benchmarks.robustness --data DIR FOLDER [FOLDER ...]

Each FOLDER is that of a version that was trained with `--held-out`. The last images of the training
set are measured as they are and after each change: no test image or photograph is used to choose.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import math
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from PIL.Image import Resampling

from model_store.engine import load_engine
from model_store.store import probabilities
from model_store.training import cifar10

SIDE = cifar10.SIDE
BLUR = ImageFilter.Kernel((3, 3), (1, 2, 1, 2, 4, 2, 1, 2, 1))


def larger(image: Image.Image) -> Image.Image:
    """The middle 26 x 26 pixels, enlarged."""
    return image.resize((SIDE, SIDE), Resampling.BICUBIC, (3, 3, 29, 29))


def smaller(image: Image.Image) -> Image.Image:
    """Reduced to 26 x 26 pixels, with its reflection around it."""
    pixels = np.asarray(image.resize((26, 26), Resampling.BICUBIC))
    return Image.fromarray(np.pad(pixels, ((3, 3), (3, 3), (0, 0)), mode="symmetric"))


def compressed(image: Image.Image) -> Image.Image:
    """As a JPEG of low quality."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as they are": lambda image: image,
    "larger": larger,
    "smaller": smaller,
    "blurred": lambda image: image.filter(BLUR),
    "sharpened": lambda image: image.filter(ImageFilter.UnsharpMask(1, 100, 0)),
    "half the color": lambda image: ImageEnhance.Color(image).enhance(0.5),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "JPEG, quality 40": compressed,
}


async def measure(
    folder: pathlib.Path, images: list[cifar10.Images], labels: cifar10.Labels
) -> str:
    """A row of the table: the accuracy on each form of the images, and the mean of all but the
    first."""
    shares = []
    async with load_engine(folder, "cpu", 1, 64, "fp32") as engine:
        for changed in images:
            rows = await probabilities(engine, changed)
            shares.append(float((rows.argmax(axis=1) == labels).mean()))
    cells = [*shares, float(np.mean(shares[1:]))]
    return " | ".join(f"{share:.2%}" for share in cells)


async def run(data: pathlib.Path, folders: list[pathlib.Path], held_out: int) -> None:
    _, split = cifar10.held_out(cifar10.read_train(data), held_out)
    images = [
        np.stack([np.asarray(change(Image.fromarray(image))) for image in split.images])
        for change in CHANGES.values()
    ]
    error = 100 * math.sqrt(0.91 * 0.09 / held_out)
    print(f"{held_out:,} held-out images; a standard error is {error:.2f} points\n")
    print("| version | " + " | ".join([*CHANGES, "mean of the changed"]) + " |")
    print("|---" * (len(CHANGES) + 2) + "|")
    for folder in folders:
        print(f"| {folder} | {await measure(folder, images, split.labels)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=pathlib.Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--held-out", type=int, default=5000, help="(%(default)s)")
    options = parser.parse_args()
    asyncio.run(run(options.data, options.folders, options.held_out))


if __name__ == "__main__":
    main()
