"""Compares ways to fit a photo into the network's input: the center square, or the whole photo.

    python -m benchmarks.decode_fit --photos DIR [--model FOLDER] [--device cpu]

DIR contains labeled photos named `<class>_<anything>.<jpg|png|webp|...>`. FOLDER is a version in
the model store (default: the one that is served). The service's decoder decodes each photo once for
each way. Scaling without antialiasing, which many tutorials do, is included for reference. The
choice in `service.decoding.picture.window` is based on this comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import pathlib
from collections.abc import Sequence
from unittest import mock

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from model_store import manifest, versions
from model_store.engine import load_engine
from service.decoding import picture
from service.decoding.image import Pixels, identify

MAX_PIXELS = 64_000_000
BATCH = 16


def center_square(data: bytes) -> Pixels:
    """Decodes the center square."""

    def window(width: float, height: float) -> picture.Box:
        side = min(width, height)
        left, upper = (width - side) / 2, (height - side) / 2
        return left, upper, left + side, upper + side

    with mock.patch.object(picture, "window", window):
        return identify(data, MAX_PIXELS).decode()


def squashed(data: bytes) -> Pixels:
    """Decodes the whole photo, with its aspect ratio changed to a square."""

    def window(width: float, height: float) -> picture.Box:
        return 0, 0, width, height

    with mock.patch.object(picture, "window", window):
        return identify(data, MAX_PIXELS).decode()


def squashed_without_antialiasing(data: bytes) -> Pixels:
    """Decodes the whole photo. Each pixel depends on its four nearest source pixels only."""
    photo = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return np.asarray(
        photo.transform(
            (picture.SIDE, picture.SIDE),
            Image.Transform.EXTENT,
            (0, 0, *photo.size),
            Image.Resampling.BILINEAR,
        )
    )


FITS = (center_square, squashed, squashed_without_antialiasing)


def read(folder: pathlib.Path, classes: Sequence[str]) -> tuple[list[bytes], npt.NDArray[np.intp]]:
    """Returns the labeled photos and the index of each one's class."""
    named = [(path, path.name.partition("_")[0]) for path in sorted(folder.iterdir())]
    photos = [(path.read_bytes(), classes.index(name)) for path, name in named if name in classes]
    if not photos:
        raise SystemExit(f"{folder} contains no file named <class>_..., with a class of {classes}")
    return [data for data, _ in photos], np.array([label for _, label in photos])


async def compare(photos: pathlib.Path, model: pathlib.Path, device: str) -> None:
    """Classifies all photos in each way, and prints how many are right."""
    async with load_engine(model, device) as engine:

        async def predict(images: Sequence[Pixels]) -> npt.NDArray[np.intp]:
            rows = [
                row
                for start in range(0, len(images), BATCH)
                for row in await engine.infer(images[start : start + BATCH])
            ]
            return np.array([np.argmax(row) for row in rows])  # type: ignore[arg-type]

        data, labels = read(photos, engine.model.classes)
        right = {fit: await predict([fit(photo) for photo in data]) == labels for fit in FITS}
    first = right[FITS[0]]
    print(f"{len(labels)} photos{'right':>30}{'':9}against {FITS[0].__name__}")
    for fit, hits in right.items():
        # Only photos with different results tell which way is better.
        gained, lost = (hits & ~first).sum(), (first & ~hits).sum()
        name = fit.__name__.replace("_", " ")
        print(f"{name:32}{hits.sum():6} {hits.mean():6.1%}     +{gained} -{lost}")


def main() -> None:
    """Runs the comparison."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_fit", description=summary)
    parser.add_argument("--photos", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--model", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    name = "cifar_resnet20_v1"
    served = versions.folder(manifest.STORE, name, versions.latest(manifest.STORE, name))
    asyncio.run(compare(options.photos, options.model or served, options.device))


if __name__ == "__main__":
    main()
