"""Measures how well the neural network's outputs reveal pictures that show none of its classes.

    python -m benchmarks.unknown --data DIR --photos FOLDER [--others FOLDER ...]

Known pictures show one of the classes of the neural network: CIFAR-10's test images in DIR and the
photographs named CLASS_* in the folder `--photos`. Unknown pictures show something else: pictures
that this program draws, and all files in the folders `--others` that the service can decode. For
each picture, several scores are computed from the logits. A good score is larger for known pictures
than for unknown pictures.

The program prints three tables. The first table shows the area under the ROC curve of each score,
where 0.5 is chance and 1 is perfect. The second table shows, for each score, the threshold that
accepts 95 % of the known pictures, and the share of unknown pictures that this threshold rejects.
The third table uses thresholds of the probability. It shows the share of pictures that each
threshold rejects, and the share of accepted known pictures that are classified correctly.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from model_store import manifest
from model_store.mxnet.runtime import load_mxnet
from model_store.training import cifar10
from model_store.training.teacher import Teachers, Version, read_version
from service.decoding.image import identify
from service.decoding.picture import fit
from service.errors import BadImage, ImageTooExpensive, ImageTooLarge, UnsupportedImageType

ACCEPTED = 0.95
"""Share of known pictures that the thresholds of the second table accept."""
EACH = 40
"""Number of drawn pictures of each kind."""
SIZE = 256
"""Width and height of drawn pictures, in pixels."""
MAX_PIXELS = 50_000_000
ERRORS = (BadImage, ImageTooExpensive, ImageTooLarge, UnsupportedImageType)
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Score = Callable[[Floats, float], Floats]
"""Computes the scores (n,) of n pictures from the logits (n, classes) and a temperature. The logits
are divided by the temperature."""


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def probability(logits: Floats, temperature: float) -> Floats:
    """Returns the probability of the most probable class, as in the service's response."""
    result: Floats = np.exp(_log_softmax(logits / temperature)).max(axis=1)
    return result


def margin(logits: Floats, temperature: float) -> Floats:
    """Returns the difference between the largest and the second largest probability."""
    ordered = np.sort(np.exp(_log_softmax(logits / temperature)), axis=1)
    result: Floats = ordered[:, -1] - ordered[:, -2]
    return result


def negative_entropy(logits: Floats, temperature: float) -> Floats:
    """Returns the negative entropy of the probabilities, in nats."""
    logarithms = _log_softmax(logits / temperature)
    result: Floats = (np.exp(logarithms) * logarithms).sum(axis=1)
    return result


def energy(logits: Floats, temperature: float) -> Floats:
    """Returns log(sum(exp(logits))), after Liu et al. 2020, arXiv 2010.03759."""
    most = logits.max(axis=1)
    result: Floats = most + np.log(np.exp(logits - most[:, None]).sum(axis=1))
    return result


def greatest_logit(logits: Floats, temperature: float) -> Floats:
    """Returns the largest logit."""
    result: Floats = logits.max(axis=1)
    return result


SCORES: dict[str, Score] = {
    "probability": probability,
    "margin": margin,
    "entropy, negative": negative_entropy,
    "energy": energy,
    "greatest logit": greatest_logit,
}


def drawn(rng: np.random.Generator) -> dict[str, list[Image.Image]]:
    """Draws unknown pictures of several kinds. Returns the pictures by kind."""
    kinds = {
        "noise": _noise,
        "one color": _plain,
        "soft clouds": _clouds,
        "gradient": _gradient,
        "stripes and squares": _squares,
        "text": _text,
        "chart": _chart,
        "shapes": _shapes,
        "face": _face,
    }
    return {name: [draw(rng) for _ in range(EACH)] for name, draw in kinds.items()}


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return red, green, blue


def _paper(rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    color = (255, 255, 255) if rng.random() < 0.5 else _color(rng)
    image = Image.new("RGB", (SIZE, SIZE), color)
    return image, ImageDraw.Draw(image)


def _noise(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))


def _plain(rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), _color(rng))


def _clouds(rng: np.random.Generator) -> Image.Image:
    coarse = int(rng.integers(2, 9))
    few = Image.fromarray(rng.integers(0, 256, (coarse, coarse, 3), dtype=np.uint8))
    return few.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def _gradient(rng: np.random.Generator) -> Image.Image:
    share = np.linspace(0, 1, SIZE)[:, None, None]
    one, other = np.array(_color(rng)), np.array(_color(rng))
    rows = (one * share + other * (1 - share)).astype(np.uint8).repeat(SIZE, axis=1)
    return Image.fromarray(np.rot90(rows, int(rng.integers(4))).copy())


def _squares(rng: np.random.Generator) -> Image.Image:
    image, draw = _paper(rng)
    step, both = int(rng.integers(12, 64)), bool(rng.random() < 0.5)
    color = _color(rng)
    for row, top in enumerate(range(0, SIZE, step)):
        for column, left in enumerate(range(0, SIZE, step)):
            if (row + column * both) % 2:
                draw.rectangle((left, top, left + step, top + step), color)
    return image


def _text(rng: np.random.Generator) -> Image.Image:
    image, draw = _paper(rng)
    size, color = int(rng.integers(14, 60)), _color(rng)
    for top in range(8, SIZE, size + 6):
        letters = "".join(chr(code) for code in rng.integers(97, 123, 24))
        draw.text((8, top), letters, color, font_size=size)
    return image


def _chart(rng: np.random.Generator) -> Image.Image:
    image, draw = _paper(rng)
    draw.line((24, 16, 24, 232, 240, 232), "black", 3)
    color = _color(rng)
    heights = rng.integers(20, 200, 8)
    for place, height in enumerate(heights):
        left = 34 + 25 * place
        draw.rectangle((left, 232 - int(height), left + 17, 232), color)
    return image


def _shapes(rng: np.random.Generator) -> Image.Image:
    image, draw = _paper(rng)
    for _ in range(int(rng.integers(1, 7))):
        left, top, width, height = (int(value) for value in rng.integers(16, 150, 4))
        box = (left, top, left + width, top + height)
        kind = int(rng.integers(3))
        if kind == 0:
            draw.ellipse(box, _color(rng), "black")
        elif kind == 1:
            draw.rectangle(box, _color(rng), "black")
        else:
            points = [(int(x), int(y)) for x, y in rng.integers(0, SIZE, (3, 2))]
            draw.polygon(points, _color(rng), "black")
    return image


def _face(rng: np.random.Generator) -> Image.Image:
    image, draw = _paper(rng)
    skin = tuple(int(value) for value in rng.integers((150, 100, 70), (256, 220, 190)))
    draw.ellipse((60, 10, 196, 130), _color(rng))
    draw.ellipse((70, 40, 186, 210), skin)
    for x in (104, 152):
        draw.ellipse((x - 9, 100, x + 9, 114), "white", "black")
        draw.ellipse((x - 4, 102, x + 4, 112), "black")
    draw.line((128, 118, 122, 146, 132, 148), "brown", 3)
    draw.arc((104, 140, 152, 180), 20, 160, (150, 30, 40), 5)
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 4))))


def decodable(folder: pathlib.Path) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the network's input for each file that can be decoded, without duplicates."""
    seen = set()
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            pixels = identify(path.read_bytes(), MAX_PIXELS).decode()
        except ERRORS:
            continue
        digest = hashlib.sha256(pixels.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            yield pixels


def photographs(folder: pathlib.Path) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """Yields the network's input and the label for each picture named CLASS_*."""
    for path in sorted(folder.iterdir()):
        name = path.name.partition("_")[0]
        if name in cifar10.CLASSES:
            yield identify(path.read_bytes(), MAX_PIXELS).decode(), cifar10.CLASSES.index(name)


def all_logits(version: Version, images: npt.NDArray[np.uint8]) -> Floats:
    """Returns the logits (n, classes) of images, uint8 (n, 32, 32, 3)."""
    mx = load_mxnet(threads=1)
    network = Teachers(mx, mx.cpu(), [version])
    parts = []
    for start in range(0, len(images), 64):
        pixels = images[start : start + 64].astype(np.float32) / 255
        normalized = (pixels - np.array(cifar10.MEAN, np.float32)) / np.array(
            cifar10.STD, np.float32
        )
        parts.append(network.logits(None, mx.nd.array(normalized.transpose(0, 3, 1, 2))))
    return np.concatenate(parts).astype(np.float64)


def area(known: Floats, unknown: Floats) -> float:
    """Returns the area under the ROC curve.

    This area is the probability that a known picture has a larger score than an unknown picture.
    """
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, "left") + np.searchsorted(ordered, known, "right")
    return float(below.mean() / 2 / len(unknown))


def report(known: dict[str, Floats], unknown: dict[str, Floats], temperature: float) -> None:
    """Prints the first and the second table.

    Args:
        known: Logits of known pictures, by kind.
        unknown: Logits of unknown pictures, by kind.
        temperature: Number by which the logits are divided.
    """
    everything = np.concatenate(list(unknown.values()))
    print("| known | score | " + " | ".join(["all", *unknown]) + " |")
    print("|---" * (len(unknown) + 3) + "|")
    for name, logits in known.items():
        for called, score in SCORES.items():
            own = score(logits, temperature)
            areas = [area(own, score(o, temperature)) for o in (everything, *unknown.values())]
            print(f"| {name} | {called} | " + " | ".join(f"{a:.3f}" for a in areas) + " |")
    print(f"\n| accepts 95 % of | score | threshold | {' | '.join(['all', *unknown])} |")
    print("|---" * (len(unknown) + 4) + "|")
    for name, logits in known.items():
        for called, score in SCORES.items():
            threshold = float(np.quantile(score(logits, temperature), 1 - ACCEPTED))
            rejected = [
                float((score(o, temperature) < threshold).mean())
                for o in (everything, *unknown.values())
            ]
            shares = " | ".join(f"{share:.0%}" for share in rejected)
            print(f"| {name} | {called} | {threshold:.3f} | {shares} |")


def report_thresholds(
    known: dict[str, Floats], labels: dict[str, Labels], unknown: Floats, temperature: float
) -> None:
    """Prints the third table. `labels` contains the labels of the known pictures, by kind."""
    columns = [f"{name} rejected | correct of the accepted" for name in known]
    print("\n| probability below | " + " | ".join([*columns, "unknown rejected"]) + " |")
    print("|---" * (2 * len(known) + 2) + "|")
    for threshold in (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        cells = []
        for name, logits in known.items():
            accepted = probability(logits, temperature) >= threshold
            right = logits.argmax(axis=1) == labels[name]
            cells += [f"{1 - accepted.mean():.1%}", f"{right[accepted].mean():.1%}"]
        rejected = float((probability(unknown, temperature) < threshold).mean())
        print(f"| {threshold:.2f} | " + " | ".join([*cells, f"{rejected:.1%}"]) + " |")


def main() -> None:
    """Measures one version and prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unknown",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, metavar="DIR", help="folder with CIFAR-10")
    add(
        "--photos",
        type=pathlib.Path,
        required=True,
        metavar="FOLDER",
        help="folder of known pictures, named CLASS_*",
    )
    add(
        "--others",
        type=pathlib.Path,
        nargs="*",
        default=[],
        metavar="FOLDER",
        help="folders of unknown pictures",
    )
    add(
        "--store",
        type=pathlib.Path,
        default=manifest.STORE,
        metavar="FOLDER",
        help="folder of the model store (default: %(default)s)",
    )
    add(
        "--version",
        default="cifar_resnet20_v1/2",
        metavar="NAME/VERSION",
        help="version to measure (default: %(default)s)",
    )
    options = parser.parse_args()
    version = read_version(options.store, options.version)
    fitted = version.model.temperature
    test, photos = cifar10.read_test(options.data), list(photographs(options.photos))
    pictures = {
        "test images": test.images,
        "photographs": np.stack([pixels for pixels, _ in photos]),
    }
    labels = {"test images": test.labels, "photographs": np.array([label for _, label in photos])}
    others = {
        name: np.stack([np.asarray(fit(image, *image.size)) for image in images])
        for name, images in drawn(np.random.default_rng(1)).items()
    }
    for folder in options.others:
        others[folder.name] = np.stack(list(decodable(folder)))
    for name, images in (pictures | others).items():
        print(f"{name}: {len(images)} pictures")
    print()
    known = {name: all_logits(version, images) for name, images in pictures.items()}
    unknown = {name: all_logits(version, images) for name, images in others.items()}
    temperature = fitted.value if fitted else 1.0
    report(known, unknown, temperature)
    report_thresholds(known, labels, np.concatenate(list(unknown.values())), temperature)


if __name__ == "__main__":
    main()
