"""Commands: `evaluate`, `calibrate`, `card` and `export` of `python -m model_store`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from model_store import backends, manifest, precision, versions
from model_store.onnx import writer
from model_store.training import cifar10, measurement
from model_store.training.calibration import calibrate
from model_store.training.evaluation import Evaluation

Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(command: Command) -> None:
    """Add the commands. `command` adds one command with a name, a function and a help text."""
    evaluate = command("evaluate", _evaluate, "measure a version on CIFAR-10's test images")
    evaluate.add_argument(
        "--name", default="cifar_resnet20_v1", help="name of the model (default: %(default)s)"
    )
    evaluate.add_argument("--version", help="number of the version (default: the highest number)")
    add_data(evaluate)
    add_device(evaluate)
    evaluate.add_argument(
        "--backend",
        choices=backends.CHOICES,
        default="auto",
        help="library that computes (default: %(default)s)",
    )
    evaluate.add_argument(
        "--precision",
        choices=precision.CHOICES,
        default="auto",
        help="precision of the computation (default: %(default)s)",
    )
    evaluate.add_argument(
        "--json",
        type=pathlib.Path,
        metavar="FILE",
        help="JSON file to write all results to, or - for standard output",
    )
    evaluate.add_argument(
        "--picture",
        type=pathlib.Path,
        metavar="FILE",
        help="PNG file to draw the confusion matrix and the reliability diagram to",
    )

    calibrated = command(
        "calibrate",
        _calibrate,
        "quantize a version to int8 and calibrate its probabilities",
    )
    _add_model(calibrated)
    add_data(calibrated)
    add_device(calibrated)
    calibrated.add_argument(
        "--into",
        type=pathlib.Path,
        metavar="FOLDER",
        help="folder of the store to add the new version to "
        "(default: the store of the original version)",
    )
    calibrated.add_argument(
        "--version", help="number of the new version (default: the next number)"
    )

    card = command("card", _card, "write MODEL_CARD.md and its picture to a version's folder")
    _add_model(card)
    add_data(card)
    add_device(card)
    card.add_argument(
        "--photos",
        type=pathlib.Path,
        metavar="FOLDER",
        help="folder of labeled photographs, named CLASS_*, that the service classifies",
    )
    card.add_argument(
        "--url",
        default="http://127.0.0.1:8000",
        help="address of the service, which must serve this version (default: %(default)s)",
    )

    export = command("export", _export, "write a version to an ONNX file")
    _add_model(export)
    export.add_argument(
        "--onnx", type=pathlib.Path, metavar="FILE", required=True, help="path of the ONNX file"
    )


def _evaluate(options: argparse.Namespace) -> int:
    version = options.version or versions.latest(options.store, options.name)
    folder = versions.folder(options.store, options.name, version)
    test = cifar10.read_test(options.data)
    with _progress(len(test.images)) as done:
        measured = asyncio.run(
            measurement.evaluate(
                folder,
                test,
                options.device,
                options.threads,
                options.precision,
                options.backend,
                done,
            )
        )
    evaluation = measured.evaluation
    if options.picture is not None:
        from model_store.training.plots import draw_evaluation

        draw_evaluation(evaluation, options.picture)
    about = {
        "name": options.name,
        "version": version,
        "backend": measured.backend.name,
        "backend_reason": measured.backend.reason,
        "precision": measured.precision.name,
        "precision_reason": measured.precision.reason,
    }
    text = json.dumps(about | evaluation.model_dump(), indent=2) + "\n"
    if str(options.json) == "-":
        sys.stdout.write(text)
        return 0
    if options.json is not None:
        options.json.write_text(text, encoding="utf-8")
    print(
        f"{options.name} {version} with {measured.backend.name} ({measured.backend.reason}), "
        f"in {measured.precision.name} ({measured.precision.reason})"
    )
    print(_summary(evaluation))
    return 0


@contextmanager
def _progress(images: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar if standard error is a terminal.

    The yielded function adds a number of images to the progress.
    """
    with tqdm(total=images, unit="image", leave=False, disable=None) as bar:
        yield bar.update


def _summary(evaluation: Evaluation) -> str:
    """Return a table of each class's accuracy and most frequent error, and the overall results."""
    names = list(evaluation.by_class)
    lines = []
    for label, name in enumerate(names):
        others = [
            0 if at == label else count for at, count in enumerate(evaluation.confusion[label])
        ]
        worst = max(range(len(names)), key=others.__getitem__)
        mistake = f"   {others[worst]:3} predicted as {names[worst]}" if others[worst] else ""
        share = evaluation.by_class[name]
        lines.append(f"{name:12} " + ("no image" if share is None else f"{share:7.2%}{mistake}"))
    lines.append(f"{'all':12} {evaluation.accuracy:7.2%} of {evaluation.images:,} images")
    lines.append(
        f"calibration error {evaluation.calibration_error:.2%} "
        f"({len(evaluation.reliability)} bins), "
        f"negative log likelihood {evaluation.negative_log_likelihood:.4f}"
    )
    return "\n".join(lines)


def _calibrate(options: argparse.Namespace) -> int:
    name, source = _named(options)
    into = options.into or options.store
    target = asyncio.run(
        calibrate(
            versions.folder(options.store, name, source),
            options.data,
            into,
            options.version or versions.next_number(into, name),
            options.device,
            options.threads,
        )
    )
    model = manifest.read(target)
    for one in model.measured:
        print(f"{one.backend} in {one.precision}: accuracy {one.accuracy:.2%} on {one.on}")
    if (temperature := model.temperature) is not None:
        print(
            f"temperature {temperature.value}: calibration error "
            f"{temperature.calibration_error_before:.2%} -> "
            f"{temperature.calibration_error:.2%} on {temperature.measured_on}"
        )
    print(onnx_files(model))
    print(f"{target}: created from version {source}")
    return 0


def _card(options: argparse.Namespace) -> int:
    from model_store.training.card import write_card

    name, version = _named(options)
    print(
        asyncio.run(
            write_card(
                versions.folder(options.store, name, version),
                options.data,
                options.photos,
                options.url,
                options.device,
                options.threads,
            )
        )
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    from model_store.training.export import export

    name, version = _named(options)
    export(versions.folder(options.store, name, version), options.onnx)
    print(f"{options.onnx}: {name} {version}, pixels float32 (n, 3, 32, 32) -> probabilities")
    return 0


def onnx_files(model: manifest.Manifest) -> str:
    """Return a line with the names of a version's ONNX files, or with what to install for them."""
    if model.onnx:
        return f"ONNX files: {', '.join(one.file for one in model.onnx.values())}"
    return f"no ONNX files, which the backend onnxruntime needs: {writer.INSTALL}"


def _named(options: argparse.Namespace) -> tuple[str, str]:
    """Return the model and the version that the argument NAME or NAME/VERSION selects."""
    name, _, version = options.model.partition("/")
    return name, version or versions.latest(options.store, name)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="NAME[/VERSION]", help="model and version (default: the highest version)"
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the folder of the data."""
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        required=True,
        metavar="FOLDER",
        help="folder with CIFAR-10's binary version",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the device and the number of CPU threads."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, gpu or gpu:N (default: %(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count(),
        help="number of CPU threads (default: %(default)s)",
    )
