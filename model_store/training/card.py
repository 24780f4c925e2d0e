"""`python -m model_store card NAME/VERSION`: MODEL_CARD.md, in a version's folder, from what was
measured.

The card is for people and decides nothing: it is no part of what a version is, and may be written
anew. After Mitchell et al. 2019, Model Cards for Model Reporting, arXiv 1810.03993.
"""

from __future__ import annotations

import http.client
import json
import pathlib
import urllib.parse
from dataclasses import dataclass
from typing import Any

from model_store import precision, versions
from model_store.manifest import BadModel, Manifest, PrecisionName
from model_store.training import cifar10, measurement
from model_store.training.evaluation import Evaluation

CARD, PICTURE = "MODEL_CARD.md", "evaluation.png"
SECONDS = 30


@dataclass(frozen=True)
class Photos:
    """What the service said of photographs: class -> (right, all); and in which precision."""

    by_class: dict[str, tuple[int, int]]
    precision: str
    probability: float
    """Mean probability of the classes it said."""

    @property
    def right(self) -> int:
        return sum(right for right, _ in self.by_class.values())

    @property
    def all(self) -> int:
        return sum(count for _, count in self.by_class.values())


async def write_card(
    folder: pathlib.Path,
    data: pathlib.Path,
    photos: pathlib.Path | None,
    url: str,
    device: str = "auto",
    threads: int = 1,
) -> pathlib.Path:
    """Measure the version in `folder` in every precision that can be had, and write its card.

    `photos`: a folder of files named CLASS_*, for the service at `url`, which must serve this
    version. Raises BadDataset, BadModel, ModuleNotFoundError without the extra `train`, OSError.
    """
    from model_store.training.plots import draw

    model = versions.read_manifest(folder)
    # first: whether the service is there is known at once
    seen = None if photos is None else ask(url, model, photos)
    test = cifar10.read_test(data)
    found: dict[PrecisionName, Evaluation] = {}
    for name in ("fp32", "int8", "fp16") if device != "cpu" else ("fp32", "int8"):
        try:
            found[name], _ = await measurement.evaluate(
                folder, test, device if name == "fp16" else "cpu", threads, name
            )
        except precision.PrecisionUnavailable:
            continue
    draw(found["fp32"], folder / PICTURE)
    path = folder / CARD
    path.write_text(_card(model, found, seen), encoding="utf-8")
    return path


def ask(url: str, model: Manifest, photos: pathlib.Path) -> Photos:
    """Post every photo to the service. Raises BadModel where it serves something else, OSError."""
    paths = sorted(p for p in photos.iterdir() if p.name.partition("_")[0] in model.classes)
    if not paths:
        raise BadModel(f"{photos}: no file is named after a class of {model.name}, as in CLASS_1")
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=SECONDS)
    try:
        ready = _answer(connection, "GET", "/readyz", b"")
        if ready.get("model") != {"name": model.name, "version": model.version}:
            raise BadModel(
                f"{url} does not serve {model.name} {model.version} but answers {ready}: start it "
                f"with SHOAL_MODEL={model.name} SHOAL_MODEL_VERSION={model.version}"
            )
        by_class: dict[str, tuple[int, int]] = {}
        sure = 0.0
        for path in paths:
            label = path.name.partition("_")[0]
            said = _answer(connection, "POST", "/predict", path.read_bytes())
            if "class" not in said:
                raise BadModel(f"{path} was not predicted: {said.get('detail', said)}")
            sure += float(said["probability"])
            right, count = by_class.get(label, (0, 0))
            by_class[label] = right + (said["class"] == label), count + 1
        return Photos(by_class, str(ready["precision"]), sure / len(paths))
    except OSError as error:
        raise BadModel(f"{url} does not answer ({error}): start the service first") from error
    finally:
        connection.close()


def _answer(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes
) -> dict[str, Any]:
    kind = {"Content-Type": "image/*"} if body else {}
    connection.request(method, path, body or None, kind)
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    return answer


def _card(model: Manifest, found: dict[PrecisionName, Evaluation], photos: Photos | None) -> str:
    sections = [
        f"# {model.name}, version {model.version}",
        _what(model, found["fp32"]),
        "## How good it is",
        _precisions(model, found),
        f"![Confusion matrix and reliability of fp32]({PICTURE})",
        _classes(found, photos),
        _photos(photos),
        "## How far its probabilities can be believed",
        _calibration(model),
        "## How it was made",
        _recipe(model),
        "## What it is not for",
        LIMITS,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _what(model: Manifest, found: Evaluation) -> str:
    origin = model.derived_from
    return (
        f"GluonCV's `{model.architecture}` for 32 x 32 pixels in {len(model.classes)} classes: "
        f"{', '.join(model.classes)}. It gets {found.accuracy:.2%} of {found.images:,} test images "
        f"of CIFAR-10 right. Parameters: `{model.parameters.file}`, "
        f"{model.parameters.bytes:,} bytes, SHA-256 `{model.parameters.sha256}`."
        + (f" Made from version {origin.version} by `calibrate`." if origin else "")
    )


def _precisions(model: Manifest, found: dict[PrecisionName, Evaluation]) -> str:
    rows = [
        f"| {name} | {one.accuracy:.2%} | {one.calibration_error:.2%} | "
        f"{one.negative_log_likelihood:.4f} |"
        for name, one in found.items()
    ]
    text = _table("| precision | accuracy | calibration error | negative log likelihood |", rows)
    if model.int8 is not None:
        text += f"\n\nint8 was calibrated on {model.int8.calibrated_on}."
    if "fp16" not in found:
        text += "\n\nfp16 was not measured: it needs a GPU."
    return text


def _classes(found: dict[PrecisionName, Evaluation], photos: Photos | None) -> str:
    rows = []
    for label in found["fp32"].by_class:
        shares = [found[name].by_class[label] for name in found]
        cells = ["" if share is None else f"{share:.1%}" for share in shares]
        if photos is not None:
            right, count = photos.by_class.get(label, (0, 0))
            cells.append(f"{right} of {count}")
        rows.append(f"| {label} | {' | '.join(cells)} |")
    columns = [*found, *(["photographs"] if photos is not None else [])]
    return _table(f"| class | {' | '.join(columns)} |", rows)


def _photos(photos: Photos | None) -> str:
    if photos is None:
        return ""
    return (
        f"Of {photos.all} photographs from elsewhere, sent to the service (which computed in "
        f"{photos.precision}), {photos.right} were recognised ({photos.right / photos.all:.1%}); "
        f"the mean probability of what it said was {photos.probability:.1%}. "
        "Few, chosen by hand, larger than CIFAR-10's and cut to their middle square: an impression "
        "and no benchmark."
    )


def _calibration(model: Manifest) -> str:
    if (found := model.temperature) is None:
        return (
            "Not calibrated: the softmax of the logits as they are, as a rule too sure of itself."
        )
    return (
        f"Logits are divided by a temperature of {found.value} (Guo et al. 2017), fitted on "
        f"{found.fitted_on} images. On {found.measured_on}, the expected calibration error fell "
        f"from {found.calibration_error_before:.2%} to {found.calibration_error:.2%} (fp32, 15 "
        "bins). The table above is of all of them, those it was fitted on included. It was not "
        "fitted on training images, of which a network is surer than of any others. It changes no "
        "class, hence no accuracy, and promises nothing of images unlike CIFAR-10's."
    )


def _recipe(model: Manifest) -> str:
    if model.training is None:
        return "Imported: how it was trained is not known."
    rows = [f"| {name} | {value} |" for name, value in model.training.items()]
    return _table("| setting | value |", rows)


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows])


LIMITS = """\
It knows these classes only and calls anything one of them, often with a high probability: people,
text and drawings included. It was trained on small pictures, each of one thing in its middle.
Whatever decides about people needs something else.

The images of CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images)
come from the web; their authors published no licence for them. The parameters are under the
project's licence, Apache-2.0, as far as it can be given."""
