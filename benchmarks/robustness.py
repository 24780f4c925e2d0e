"""Measures the accuracy of versions of the neural network on changed images.

    python -m benchmarks.robustness --data DIR FOLDER [FOLDER ...]

The changes imitate the differences between uploaded photographs and the images of CIFAR-10. Each
FOLDER is the folder of a version that was trained with `--held-out`. The held-out images are the
last images of the training set. The accuracy is measured on these images, unchanged and after each
change. So a version can be selected without the use of test images.
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
    """Returns the middle 26 x 26 pixels, enlarged to 32 x 32."""
    return image.resize((SIDE, SIDE), Resampling.BICUBIC, (3, 3, 29, 29))


def smaller(image: Image.Image) -> Image.Image:
    """Returns the image reduced to 26 x 26 pixels. The border is a reflection of the image."""
    pixels = np.asarray(image.resize((26, 26), Resampling.BICUBIC))
    return Image.fromarray(np.pad(pixels, ((3, 3), (3, 3), (0, 0)), mode="symmetric"))


def compressed(image: Image.Image) -> Image.Image:
    """Returns the image after compression to a JPEG of low quality."""
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
    """Returns the cells of the table for one version.

    The cells are the accuracy on the unchanged images, the accuracy after each change, and the mean
    of the accuracies after a change.

    Args:
        folder: Folder of the version.
        images: The images, unchanged and after each change.
        labels: Labels of the images.
    """
    shares = []
    async with load_engine(folder, "cpu", 1, 64, "fp32") as engine:
        for changed in images:
            rows = await probabilities(engine, changed)
            shares.append(float((rows.argmax(axis=1) == labels).mean()))
    cells = [*shares, float(np.mean(shares[1:]))]
    return " | ".join(f"{share:.2%}" for share in cells)


async def run(data: pathlib.Path, folders: list[pathlib.Path], held_out: int) -> None:
    """Measures all versions and prints a Markdown table."""
    _, split = cifar10.held_out(cifar10.read_train(data), held_out)
    images = [
        np.stack([np.asarray(change(Image.fromarray(image))) for image in split.images])
        for change in CHANGES.values()
    ]
    error = 100 * math.sqrt(0.91 * 0.09 / held_out)
    print(f"{held_out:,} held-out images; the standard error is {error:.2f} percentage points\n")
    print("| version | " + " | ".join([*CHANGES, "mean of all changes"]) + " |")
    print("|---" * (len(CHANGES) + 2) + "|")
    for folder in folders:
        print(f"| {folder} | {await measure(folder, images, split.labels)} |", flush=True)


def main() -> None:
    """Measures the versions in the folders of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", type=pathlib.Path, nargs="+", metavar="FOLDER", help="folder of a version"
    )
    parser.add_argument(
        "--data", type=pathlib.Path, required=True, metavar="DIR", help="folder with CIFAR-10"
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=5000,
        help="number of held-out images, as in the training of the versions (default: %(default)s)",
    )
    options = parser.parse_args()
    asyncio.run(run(options.data, options.folders, options.held_out))


if __name__ == "__main__":
    main()
