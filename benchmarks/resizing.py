"""Compares ways to reduce pictures to the 32 x 32 pixels that the neural network needs.

    python -m benchmarks.resizing --photos FOLDER [--version NAME/VERSION] [--store FOLDER]

The folder `--photos` contains labeled photographs, named CLASS_*. Each way of resizing is applied
to the same decoded pictures. Some ways make several images of a picture. In this case, the
probabilities of the images are averaged. The table shows for each way:
- the number of pictures that are classified correctly;
- the number of pictures that are classified correctly only with this way (gained), and the number
  of pictures that are classified correctly only with the service's way (lost);
- the p-value of the gains and losses, by a two-sided sign test;
- the number of images that the neural network classifies for each picture;
- the CPU time of resizing a decoded picture.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from PIL.Image import Resampling

from model_store import manifest, versions
from model_store.engine import LaneEngine, load_engine
from model_store.store import probabilities
from service.decoding.picture import Box, fit, window

SIDE = 32
GRAY = (125, 123, 114)
"""Mean color of CIFAR-10's training images."""
Way = Callable[[Image.Image], list[Image.Image]]
"""Makes one or more images of 32 x 32 pixels from a picture."""


def served(image: Image.Image) -> list[Image.Image]:
    """Resizes the middle square in the same way as the service."""
    return [fit(image, *image.size)]


def center(resampling: Resampling) -> Way:
    """Returns a way that resizes the middle square with one filter, which reads all pixels."""
    return lambda image: [image.resize((SIDE, SIDE), resampling, window(*image.size))]


def four_neighbors(image: Image.Image) -> list[Image.Image]:
    """Resizes the middle square as OpenCV does by default.

    Each pixel of the result is interpolated from the four nearest pixels of the picture.
    """
    extent = Image.Transform.EXTENT
    return [
        image.transform((SIDE, SIDE), extent, window(*image.size), resample=Resampling.BILINEAR)
    ]


def squeezed(image: Image.Image) -> list[Image.Image]:
    """Resizes the whole picture to a square, which changes its proportions."""
    return [image.resize((SIDE, SIDE), Resampling.BICUBIC, reducing_gap=3)]


def padded(color: str | tuple[int, int, int]) -> Way:
    """Returns a way that resizes the whole picture and adds bars of one color."""
    return lambda image: [ImageOps.pad(image, (SIDE, SIDE), Resampling.BICUBIC, color)]


def mirrored_edges(image: Image.Image) -> list[Image.Image]:
    """Resizes the whole picture and adds bars that contain a reflection of the picture."""
    scale = SIDE / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    small = np.asarray(image.resize((width, height), Resampling.BICUBIC, reducing_gap=3))
    rows, columns = SIDE - height, SIDE - width
    edges = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    return [Image.fromarray(np.pad(small, edges, mode="symmetric"))]


def part(image: Image.Image, share: float, x: float = 0.5, y: float = 0.5) -> Image.Image:
    """Resizes a square part of a picture.

    Args:
        image: The picture.
        share: Side of the part, as a share of the picture's shorter side.
        x: Horizontal position of the part, from 0 (left) to 1 (right).
        y: Vertical position of the part, from 0 (top) to 1 (bottom).
    """
    side = share * min(image.size)
    left, upper = x * (image.width - side), y * (image.height - side)
    box: Box = (left, upper, left + side, upper + side)
    return image.resize((SIDE, SIDE), Resampling.BICUBIC, box, reducing_gap=3)


def parts(*wanted: tuple[float, float, float]) -> Way:
    """Returns a way that makes several parts. `wanted`: `share`, `x`, `y` for each `part`."""
    return lambda image: [part(image, *one) for one in wanted]


def with_mirror(way: Way) -> Way:
    """Returns a way that also makes the mirror image of each image of `way`."""
    return lambda image: [turned for seen in way(image) for turned in (seen, ImageOps.mirror(seen))]


def together(*ways: Way) -> Way:
    """Returns a way that makes the images of all `ways`."""
    return lambda image: [seen for way in ways for seen in way(image)]


CORNERS = [(0.85, x, y) for x in (0.0, 1.0) for y in (0.0, 1.0)]
WAYS: dict[str, Way] = {
    "as served": served,
    "box filter": center(Resampling.BOX),
    "bilinear filter": center(Resampling.BILINEAR),
    "Hamming filter": center(Resampling.HAMMING),
    "bicubic filter": center(Resampling.BICUBIC),
    "Lanczos filter": center(Resampling.LANCZOS),
    "four neighbors": four_neighbors,
    "middle 90 %": parts((0.9, 0.5, 0.5)),
    "middle 95 %": parts((0.95, 0.5, 0.5)),
    "middle 85 %": parts((0.85, 0.5, 0.5)),
    "middle 80 %": parts((0.8, 0.5, 0.5)),
    "whole, squeezed": squeezed,
    "whole, gray bars": padded(GRAY),
    "whole, white bars": padded("white"),
    "whole, reflected": mirrored_edges,
    "served + its mirror image": with_mirror(served),
    "100 % + 80 %": parts((1.0, 0.5, 0.5), (0.8, 0.5, 0.5)),
    "100 % + 90 % + 80 %": parts((1.0, 0.5, 0.5), (0.9, 0.5, 0.5), (0.8, 0.5, 0.5)),
    "90 % + its mirror image": with_mirror(parts((0.9, 0.5, 0.5))),
    "100 % + 85 %": parts((1.0, 0.5, 0.5), (0.85, 0.5, 0.5)),
    "served + squeezed": together(served, squeezed),
    "served + reflected": together(served, mirrored_edges),
    "beginning, middle, end": parts((1.0, 0.0, 0.0), (1.0, 0.5, 0.5), (1.0, 1.0, 1.0)),
    "middle and corners of 85 %": parts((0.85, 0.5, 0.5), *CORNERS),
    "served, squeezed, reflected, mirrored": with_mirror(
        together(served, squeezed, mirrored_edges)
    ),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """Results of one way of resizing."""

    right: npt.NDArray[np.bool_]
    """Whether each picture is classified correctly."""
    seen: int
    """Number of images that the neural network classifies for each picture."""
    milliseconds: float
    """CPU milliseconds of resizing a picture: for each picture, the minimum of three runs, averaged
    over all pictures."""


def read(folder: pathlib.Path, classes: tuple[str, ...]) -> tuple[list[Image.Image], list[int]]:
    """Reads the pictures in `folder` and their labels.

    As in the service, pictures are rotated according to the EXIF data, and transparent pixels
    become white.
    """
    paths = sorted(path for path in folder.iterdir() if path.name.partition("_")[0] in classes)
    images = []
    for path in paths:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.has_transparency_data:
            image = Image.alpha_composite(
                Image.new("RGBA", image.size, "white"), image.convert("RGBA")
            )
        images.append(image.convert("RGB"))
    return images, [classes.index(path.name.partition("_")[0]) for path in paths]


async def measure(
    engine: LaneEngine, images: list[Image.Image], labels: list[int], way: Way
) -> Result:
    """Measures one way of resizing."""
    times = np.empty((3, len(images)))
    for run in range(3):
        for index, image in enumerate(images):
            started = time.thread_time()
            way(image)
            times[run, index] = time.thread_time() - started
    views = [way(image) for image in images]
    rows = await probabilities(engine, np.stack([np.asarray(v) for seen in views for v in seen]))
    means = rows.reshape(len(images), len(views[0]), -1).mean(axis=1)
    return Result(
        means.argmax(axis=1) == np.asarray(labels),
        len(views[0]),
        1000 * float(times.min(axis=0).mean()),
    )


def sign_test(gained: int, lost: int) -> float:
    """Returns the p-value of a two-sided sign test.

    The p-value is the probability of a difference of this size or larger if gains and losses are
    equally likely.
    """
    count = gained + lost
    tail: int = sum(math.comb(count, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2**count))


async def run(folder: pathlib.Path, photos: pathlib.Path) -> None:
    """Measures all ways with the version in `folder`, and prints a Markdown table."""
    async with load_engine(folder, "cpu", 1, 64, "fp32") as engine:
        images, labels = read(photos, engine.model.classes)
        network = 1000 * min(engine.warm_up_seconds[64]) / 64
        print(
            f"{len(images)} pictures. The neural network takes {network:.2f} ms per image in "
            "batches of 64 images.\n"
        )
        print("| way | correct | gained, lost | p | images | ms per picture |")
        print("|---|---|---|---|---|---|")
        base = await measure(engine, images, labels, served)
        for name, way in WAYS.items():
            found = await measure(engine, images, labels, way)
            gained = int((found.right & ~base.right).sum())
            lost = int((base.right & ~found.right).sum())
            print(
                f"| {name} | {found.right.sum()} ({found.right.mean():.1%}) | +{gained} -{lost} "
                f"| {sign_test(gained, lost):.2f} | {found.seen} | {found.milliseconds:.2f} |",
                flush=True,
            )


def main() -> None:
    """Measures the version that is given on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resizing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--photos",
        type=pathlib.Path,
        required=True,
        metavar="FOLDER",
        help="folder of labeled photographs, named CLASS_*",
    )
    parser.add_argument(
        "--store",
        type=pathlib.Path,
        default=manifest.STORE,
        metavar="FOLDER",
        help="folder of the model store (default: %(default)s)",
    )
    parser.add_argument(
        "--version",
        default="cifar_resnet20_v1/2",
        metavar="NAME/VERSION",
        help="version of the neural network (default: %(default)s)",
    )
    options = parser.parse_args()
    name, _, version = options.version.partition("/")
    asyncio.run(run(versions.folder(options.store, name, version), options.photos))


if __name__ == "__main__":
    main()
