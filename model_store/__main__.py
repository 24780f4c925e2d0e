"""Train networks and look after the store.

Errors of the user end in one line and exit status 2, an interrupted training in 130.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import pathlib
import sys

from pydantic import ValidationError

from model_store import cifar10, manifest, store
from model_store.device import DeviceUnavailable
from model_store.params import BadParams
from model_store.recipe import Recipe
from model_store.runtime import MXNetUnavailable

USER_ERRORS = (
    BadParams,
    DeviceUnavailable,
    MXNetUnavailable,
    ValueError,
    cifar10.BadDataset,
    manifest.BadModel,
)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"] if isinstance(part, str))
        return _failed(options, where + first["msg"])
    except USER_ERRORS as error:
        return _failed(options, str(error))
    return 0


def _failed(options: argparse.Namespace, why: str) -> int:
    print(f"model_store {options.command}: {why}", file=sys.stderr)
    return 2


def _train(options: argparse.Namespace) -> None:
    from model_store.train import Interrupted, train  # needs the extra `train`

    chosen = {f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe)}
    try:
        target = train(
            Recipe(**chosen),
            data=options.data,
            checkpoints=options.checkpoints,
            store=options.store,
            version=options.version,
            device=options.device,
            threads=options.threads,
        )
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    measured = manifest.read(target).measured[0]
    print(f"{target}: accuracy {measured.accuracy:.2%} on {measured.on}")


def _list(options: argparse.Namespace) -> None:
    for name, version in manifest.versions(options.store):
        model = manifest.read(manifest.folder(options.store, name, version))
        accuracy = f"{model.measured[0].accuracy:.2%}" if model.measured else "not measured"
        print(f"{name} {version}: {len(model.classes)} classes, accuracy {accuracy}")


def _verify(options: argparse.Namespace) -> None:
    for name, version in manifest.versions(options.store):
        asyncio.run(store.verify(manifest.folder(options.store, name, version)))
        print(f"{name} {version}: as its manifest says, loads and computes")


def _import(options: argparse.Namespace) -> None:
    target = asyncio.run(
        store.import_params(
            options.file,
            options.store,
            options.name or options.arch,
            options.version,
            options.arch,
            store.read_classes(options.classes) if options.classes else cifar10.CLASSES,
            manifest.Normalisation(mean=tuple(options.mean), std=tuple(options.std)),
        )
    )
    print(f"{target}: imported; serve it with SHOAL_MODEL={target.parent.name}")


def _evaluate(options: argparse.Namespace) -> None:
    version = options.version or manifest.latest(options.store, options.name)
    folder = manifest.folder(options.store, options.name, version)
    test = cifar10.read_test(options.data)
    accuracy = asyncio.run(store.evaluate(folder, test, options.device, options.threads))
    for name, share in accuracy.by_class.items():
        print(f"{name:12} {share:7.2%}")
    print(f"{'all':12} {accuracy.overall:7.2%} of {accuracy.images:,} images")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_store", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument(
            "--store", type=pathlib.Path, default=manifest.STORE, help="its folder (%(default)s)"
        )
        return made

    command("list", _list, "list every version in the store")
    command("verify", _verify, "load and run every version in the store")
    _add_import(command("import", _import, "add a .params file that was trained elsewhere"))
    _add_evaluate(command("evaluate", _evaluate, "measure accuracy on CIFAR-10's test images"))
    _add_train(command("train", _train, "train on CIFAR-10 and add a version"))
    return parser


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=pathlib.Path, help="as net.save_parameters wrote it")
    parser.add_argument("--arch", default="cifar_resnet20_v1", help="(%(default)s)")
    parser.add_argument("--name", help="the model's name (that of the architecture)")
    parser.add_argument("--version", default="1", help="a number (%(default)s)")
    parser.add_argument(
        "--classes", type=pathlib.Path, help="file of class names, one a line (CIFAR-10's)"
    )
    for name, default in (("mean", cifar10.MEAN), ("std", cifar10.STD)):
        parser.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            default=default,
            metavar=("R", "G", "B"),
            help="normalisation of pixels from 0 to 1 (%(default)s)",
        )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_data_and_device(parser)
    parser.add_argument("--name", default="cifar_resnet20_v1", help="(%(default)s)")
    parser.add_argument("--version", help="(the highest)")


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_data_and_device(parser)
    parser.add_argument("--version", default="1", help="number of the new version (%(default)s)")
    parser.add_argument(
        "--checkpoints",
        type=pathlib.Path,
        default=pathlib.Path("training"),
        help="folder to save to after every epoch and to go on from (%(default)s)",
    )
    for option in dataclasses.fields(Recipe):
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=type(option.default),
            default=option.default,
            help="(%(default)s)",
        )


def _add_data_and_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=pathlib.Path, required=True, help="folder of CIFAR-10's binary version"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="CPU threads (%(default)s)"
    )


if __name__ == "__main__":
    sys.exit(main())
