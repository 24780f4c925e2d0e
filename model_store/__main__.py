"""Train neural networks, and manage the model store, which is the folder of the models to serve.

    shoal models list
    shoal models verify --name pets
    shoal models import net.params --name pets --arch cifar_resnet56_v1 --classes labels.txt
    shoal models evaluate --data cifar-10-batches-bin --json -
    shoal models calibrate pets/1 --data cifar-10-batches-bin
    shoal models card pets/2 --data cifar-10-batches-bin
    shoal models export pets/2 --onnx pets.onnx
    shoal models train --data cifar-10-batches-bin --epochs 40

`python -m model_store` runs the same commands. The exit status is 0 if the command succeeds. If a
command fails, the command prints one line that says what to do, and exits with status 2. If
training is interrupted, the exit status is 130. If `list` or `verify` finds a version that is
invalid, or that no installed backend can run, the command prints one line about this version,
continues with the next version, and finally exits with status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import pathlib
import sys
from collections.abc import Callable

from pydantic import ValidationError

from model_store import backends, manifest, store, versions
from model_store.architectures import UnknownArchitecture
from model_store.backend import BackendUnavailable
from model_store.device import DeviceUnavailable
from model_store.params import BadParams
from model_store.precision import PrecisionUnavailable, is_offered
from model_store.training import cifar10, commands
from model_store.training.measurement import PRECISIONS
from model_store.training.recipe import Recipe

BAD_VERSION = (BadParams, BackendUnavailable, OSError, UnknownArchitecture, manifest.BadModel)
USER_ERRORS = (
    *BAD_VERSION,
    DeviceUnavailable,
    ModuleNotFoundError,
    PrecisionUnavailable,
    ValueError,
    cifar10.BadDataset,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command that `arguments` contains. None: the arguments are `sys.argv[1:]`."""
    parser = argparse.ArgumentParser(
        prog="python -m model_store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Run the command in `options`, and return the exit status.

    `options` must come from a parser that `add_arguments` was applied to.
    """
    try:
        status: int = options.do(options)
    except USER_ERRORS as error:
        _print_error(options, error)
        return 2
    return status


def _print_error(options: argparse.Namespace, error: Exception, about: str = "") -> None:
    print(f"{options.prog}: {about}{_message(error)}", file=sys.stderr)


def _message(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return manifest.first_error(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}. Check the path, its permissions, and the disk"
    return str(error)


def _train(options: argparse.Namespace) -> int:
    try:
        from model_store.training.job import Interrupted, train
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}: install the extra 'shoal[train]', as `make train` does"
        ) from error
    if "mxnet" not in backends.installed():
        raise BackendUnavailable(
            "training needs MXNet, which is not installed: on Linux x86-64 with Python 3.11 or "
            "3.12, install the extra 'shoal[cpu]'"
        )

    chosen = {f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe)}
    try:
        target = train(
            Recipe(**chosen),
            data=options.data,
            checkpoints=options.checkpoints,
            store=options.store,
            version=options.version or versions.next_number(options.store, options.architecture),
            device=options.device,
            threads=options.threads,
            logits=options.logits,
        )
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    model = manifest.read(target)
    measured = model.measured[0]
    print(commands.onnx_files(model))
    print(f"{target}: accuracy {measured.accuracy:.2%} on {measured.on}")
    return 0


def _list(options: argparse.Namespace) -> int:
    def describe(folder: pathlib.Path) -> str:
        model = versions.read_manifest(folder)
        accuracy = f"{model.measured[0].accuracy:.2%}" if model.measured else "not measured"
        with_mxnet = ", ".join(one for one in PRECISIONS if is_offered(one, model, "mxnet"))
        with_onnx = ", ".join(one for one in PRECISIONS if one in model.onnx) or "no files"
        return (
            f"{len(model.classes)} classes, accuracy {accuracy}; "
            f"mxnet: {with_mxnet}; onnxruntime: {with_onnx}"
        )

    return _print_each(options, versions.all_versions(options.store), describe)


def _verify(options: argparse.Namespace) -> int:
    def describe(folder: pathlib.Path) -> str:
        names = asyncio.run(store.verify(folder))
        return f"matches its manifest and can be served with {' and '.join(names)}"

    found = versions.find(options.store, options.name, options.version)
    return _print_each(options, found, describe)


def _print_each(
    options: argparse.Namespace,
    pairs: list[tuple[str, str]],
    describe: Callable[[pathlib.Path], str],
) -> int:
    """Print one line for each version. Returns 1 if a version is invalid, otherwise 0."""
    status = 0
    if others := versions.ignored(options.store):
        ignored = ", ".join(others)
        print(
            f"ignored, because these names are not valid for versions: {ignored}", file=sys.stderr
        )
    for name, version in pairs:
        try:
            line = describe(versions.folder(options.store, name, version))
        except BAD_VERSION as error:
            _print_error(options, error, about=f"{name} {version}: ")
            status = 1
        else:
            print(f"{name} {version}: {line}")
    return status


def _import(options: argparse.Namespace) -> int:
    name = options.name or options.arch
    target = asyncio.run(
        store.import_params(
            options.file,
            options.store,
            name,
            options.version or versions.next_number(options.store, name),
            options.arch,
            store.read_classes(options.classes) if options.classes else cifar10.CLASSES,
            manifest.Normalization(mean=tuple(options.mean), std=tuple(options.std)),
        )
    )
    elsewhere = options.store != manifest.STORE
    where = f"SHOAL_MODEL_STORE={options.store} " if elsewhere else ""
    print(commands.onnx_files(manifest.read(target)))
    print(f"{target}: imported; serve it with {where}SHOAL_MODEL={target.parent.name}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all commands and their options to a parser."""
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, do: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        subcommand = subcommands.add_parser(name, help=text, description=text)
        subcommand.set_defaults(do=do, prog=subcommand.prog)
        subcommand.add_argument(
            "--store",
            type=pathlib.Path,
            metavar="FOLDER",
            default=manifest.STORE,
            help="folder of the model store (default: %(default)s)",
        )
        return subcommand

    command("list", _list, "list every version in the store")
    _add_verify(
        command("verify", _verify, "load and run all versions in the store, or selected versions")
    )
    _add_import(command("import", _import, "add a .params file that was trained elsewhere"))
    commands.add_commands(command)
    _add_train(command("train", _train, "train on CIFAR-10 and add a version"))


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="verify only the model with this name")
    parser.add_argument("--version", help="verify only versions with this number")


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=pathlib.Path, metavar="FILE", help="file written by net.save_parameters"
    )
    parser.add_argument(
        "--arch",
        default="cifar_resnet20_v1",
        help="architecture of the network (default: %(default)s)",
    )
    parser.add_argument("--name", help="name of the model (default: the name of the architecture)")
    parser.add_argument("--version", help="number of the version (default: the next number)")
    parser.add_argument(
        "--classes",
        type=pathlib.Path,
        metavar="FILE",
        help="file of class names, one per line (default: the classes of CIFAR-10)",
    )
    for name, default, meaning in (
        ("mean", cifar10.MEAN, "mean that is subtracted from pixel values, on a scale from 0 to 1"),
        ("std", cifar10.STD, "standard deviation that the difference is divided by"),
    ):
        parser.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            default=default,
            metavar=("R", "G", "B"),
            help=f"{meaning} (default: %(default)s)",
        )


def _add_train(parser: argparse.ArgumentParser) -> None:
    commands.add_data(parser)
    commands.add_device(parser)
    parser.add_argument("--version", help="number of the new version (default: the next number)")
    parser.add_argument(
        "--checkpoints",
        type=pathlib.Path,
        metavar="FOLDER",
        default=pathlib.Path("training"),
        help="folder of checkpoints; training continues from the newest checkpoint "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--logits",
        type=pathlib.Path,
        metavar="FOLDER",
        help="folder that stores the logits of teachers; several runs can share the folder "
        "(default: the folder of --checkpoints)",
    )
    for option in dataclasses.fields(Recipe):
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=type(option.default),
            default=option.default,
            help=option.metadata["help"]
            + (" (default: %(default)s)" if option.default != "" else ""),
        )


if __name__ == "__main__":
    sys.exit(main())
