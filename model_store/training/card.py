"""Writes the model card of a version: `python -m model_store card NAME/VERSION`.

MODEL_CARD.md is written into the version's folder. The card is documentation only: no code reads
the card, and it can be written again at any time. The sections follow Mitchell et al. 2019, Model
Cards for Model Reporting, arXiv 1810.03993.
"""

from __future__ import annotations

import http.client
import json
import pathlib
import urllib.parse
from dataclasses import dataclass
from typing import Any

from model_store import versions
from model_store.manifest import BadModel, Manifest
from model_store.training import cifar10, measurement
from model_store.training.evaluation import Evaluation, evaluate
from model_store.training.measurement import Key

CARD, PICTURE = "MODEL_CARD.md", "evaluation.png"
TIMEOUT = 30
"""Timeout in seconds for each response of the service."""


@dataclass(frozen=True)
class Photos:
    """Predictions of the service for labeled photographs."""

    by_class: dict[str, tuple[int, int]]
    """Class -> number of its photographs that were classified correctly, and number of all its
    photographs."""
    backend: str
    """Backend with which the service runs the version."""
    precision: str
    """Precision in which the service runs the version."""
    probability: float
    """Mean probability of the predicted classes."""

    @property
    def right(self) -> int:
        """Number of photographs that were classified correctly."""
        return sum(right for right, _ in self.by_class.values())

    @property
    def all(self) -> int:
        """Number of photographs."""
        return sum(count for _, count in self.by_class.values())


async def write_card(
    folder: pathlib.Path,
    data: pathlib.Path,
    photos: pathlib.Path | None,
    url: str,
    device: str = "auto",
    threads: int = 1,
) -> pathlib.Path:
    """Measure a version with every installed backend in every precision, and write its card.

    Args:
        folder: Folder of the version.
        data: Folder of CIFAR-10's binary version.
        photos: Folder of labeled photographs, named CLASS_*, that the service at `url` classifies.
            None: the card has no results for photographs.
        url: Address of a service that serves this version. Not used if `photos` is None.
        device: auto, cpu, gpu or gpu:N; see `measurement.outputs`.
        threads: Number of CPU threads.

    Returns:
        Path of the card.

    Raises:
        ModuleNotFoundError: The extra `train` is not installed.
        BadDataset, BadModel, BadParams, BackendUnavailable, DeviceUnavailable, OSError.
    """
    from model_store.training.plots import draw_evaluation

    model = versions.read_manifest(folder)
    # The photographs are classified first, so that the error of a missing service is raised
    # immediately.
    predicted = None if photos is None else predict_photos(url, model, photos)
    test = cifar10.read_test(data)
    measurement.check_classes(folder, model)
    outputs = await measurement.outputs(folder, [test.images], device, threads)
    evaluations = {
        key: evaluate(rows, test.labels, model.classes) for key, (rows,) in outputs.items()
    }
    draw_evaluation(_exact(evaluations), folder / PICTURE)
    path = folder / CARD
    path.write_text(_card(model, evaluations, predicted), encoding="utf-8")
    return path


def predict_photos(url: str, model: Manifest, photos: pathlib.Path) -> Photos:
    """Send all files that are named CLASS_* to the service, and return the results.

    Args:
        url: Address of the service.
        model: Manifest of the version that the service must serve.
        photos: Folder of the files.

    Raises:
        BadModel: The service does not respond, serves another version or rejects a file, or there
            is no file with such a name.
    """
    paths = sorted(p for p in photos.iterdir() if p.name.partition("_")[0] in model.classes)
    if not paths:
        raise BadModel(f"{photos}: no file is named CLASS_*, where CLASS is a class of the model")
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=TIMEOUT)
    try:
        ready = _answer(connection, "GET", "/readyz", b"")
        if ready.get("model") != {"name": model.name, "version": model.version}:
            raise BadModel(
                f"{url} does not serve {model.name} {model.version}; it responds with {ready}. "
                f"Start it with SHOAL_MODEL={model.name} SHOAL_MODEL_VERSION={model.version}"
            )
        by_class: dict[str, tuple[int, int]] = {}
        total = 0.0
        for path in paths:
            label = path.name.partition("_")[0]
            answer = _answer(connection, "POST", "/predict", path.read_bytes())
            if "class" not in answer:
                raise BadModel(f"the service rejected {path}: {answer.get('detail', answer)}")
            total += float(answer["probability"])
            right, count = by_class.get(label, (0, 0))
            by_class[label] = right + (answer["class"] == label), count + 1
        runs = str(ready["backend"]), str(ready["precision"])
        return Photos(by_class, *runs, total / len(paths))
    except OSError as error:
        raise BadModel(f"{url} does not respond ({error}): start the service first") from error
    finally:
        connection.close()


def _answer(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes
) -> dict[str, Any]:
    kind = {"Content-Type": "image/*"} if body else {}
    connection.request(method, path, body or None, kind)
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    return answer


def _exact(evaluations: dict[Key, Evaluation]) -> Evaluation:
    """Return the evaluation in fp32 of the first backend."""
    return next(one for (_, precision), one in evaluations.items() if precision == "fp32")


def _card(model: Manifest, evaluations: dict[Key, Evaluation], photos: Photos | None) -> str:
    sections = [
        f"# {model.name}, version {model.version}",
        _overview(model, _exact(evaluations)),
        "## Accuracy",
        _precisions(model, evaluations),
        f"![Confusion matrix and reliability of fp32]({PICTURE})",
        _classes(evaluations, photos),
        _photos(photos),
        "## Calibration",
        _calibration(model),
        "## Training",
        _recipe(model),
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _overview(model: Manifest, evaluation: Evaluation) -> str:
    origin = model.derived_from
    return (
        f"GluonCV's `{model.architecture}` for 32 x 32 pixels in {len(model.classes)} classes: "
        f"{', '.join(model.classes)}. The network classifies {evaluation.accuracy:.2%} of "
        f"{evaluation.images:,} test images of CIFAR-10 correctly. Parameters: "
        f"`{model.parameters.file}`, {model.parameters.bytes:,} bytes, SHA-256 "
        f"`{model.parameters.sha256}`."
        + (f" Created from version {origin.version} by `calibrate`." if origin else "")
    )


def _precisions(model: Manifest, evaluations: dict[Key, Evaluation]) -> str:
    rows = [
        f"| {backend} | {precision} | {one.accuracy:.2%} | {one.calibration_error:.2%} | "
        f"{one.negative_log_likelihood:.4f} |"
        for (backend, precision), one in evaluations.items()
    ]
    head = "| backend | precision | accuracy | calibration error | negative log likelihood |"
    text = _table(head, rows)
    if model.int8 is not None:
        text += f"\n\nint8 was calibrated on {model.int8.calibrated_on}."
    if ("onnxruntime", "fp16") in evaluations:
        text += "\n\nWithout a GPU, fp16 with onnxruntime is measured on the CPU."
    if ("mxnet", "fp16") not in evaluations:
        text += "\n\nfp16 with mxnet was not measured, because it needs a GPU."
    return text


def _classes(evaluations: dict[Key, Evaluation], photos: Photos | None) -> str:
    rows = []
    for label in _exact(evaluations).by_class:
        shares = [one.by_class[label] for one in evaluations.values()]
        cells = ["" if share is None else f"{share:.1%}" for share in shares]
        if photos is not None:
            right, count = photos.by_class.get(label, (0, 0))
            cells.append(f"{right} of {count}")
        rows.append(f"| {label} | {' | '.join(cells)} |")
    columns = [" ".join(key) for key in evaluations]
    columns += ["photographs"] if photos is not None else []
    return _table(f"| class | {' | '.join(columns)} |", rows)


def _photos(photos: Photos | None) -> str:
    if photos is None:
        return ""
    return (
        f"The service, with {photos.backend} in {photos.precision}, recognized {photos.right} of "
        f"{photos.all} photographs from other sources ({photos.right / photos.all:.1%}). The mean "
        f"probability of the predicted classes was {photos.probability:.1%}. The "
        "photographs are few, were chosen by hand, and are larger than CIFAR-10's images. The "
        "network gets only the middle square of each photograph."
    )


def _calibration(model: Manifest) -> str:
    if (temperature := model.temperature) is None:
        return (
            "This version is not calibrated. Probabilities are the softmax of the logits and are "
            "usually too high."
        )
    return (
        f"Logits are divided by a temperature of {temperature.value} (Guo et al. 2017), fitted on "
        f"{temperature.fitted_on}. On {temperature.measured_on}, the expected calibration "
        f"error fell from {temperature.calibration_error_before:.2%} to "
        f"{temperature.calibration_error:.2%} (fp32, 15 bins). The calibration errors in the "
        "section Accuracy were measured on all test images, including the images that the "
        "temperature was fitted on. Training images were not used to fit the temperature, because "
        "networks are overconfident on images that they were trained on. The temperature does not "
        "change the predicted class of any image. The calibration error was not measured on "
        "images from other sources."
    )


def _recipe(model: Manifest) -> str:
    if model.training is None:
        return "This version was imported. The recipe of the training is not known."
    rows = [f"| {name} | {value} |" for name, value in model.training.items()]
    return _table("| setting | value |", rows)


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows])


LIMITS = """\
The network assigns one of its classes to every picture, even to pictures of people, text and
drawings, and often with a high probability. The network was trained on small pictures with one
object in the middle. The network is not suitable for decisions about people.

The images of CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images)
come from the web, and their authors published no license for them. The parameters are under the
project's license, Apache-2.0, as far as the project can grant this license."""
