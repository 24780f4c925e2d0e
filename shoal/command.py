"""Image classification with dynamic micro-batching.

    shoal serve --port 9000            serve predictions over HTTP
    shoal predict horse.jpg *.png      classify image files, without a server
    shoal predict *.png --url URL      classify image files with a server
    shoal bench --rate 100,200         measure the latency and the throughput of a server
    shoal models list                  list the installed models

`shoal COMMAND --help` explains each command, with examples.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Collection, Sequence
from typing import Protocol, cast

from shoal import __version__

COMMANDS = {
    "serve": ("shoal.serve", "serve predictions over HTTP"),
    "predict": ("shoal.predict", "classify image files"),
    "bench": ("shoal.bench", "measure a server under load"),
    "models": ("model_store.__main__", "list, verify, import, train and measure models"),
    "completion": ("shoal.completion", "print the completion script for a shell"),
}
"""Module and purpose of each command, by name. A module is imported only when its command is used,
because importing mxnet, httpx and the service would make `shoal --help` slow."""

EXIT_STATUS = """\
exit status:
  0    success
  1    failure: an image has no prediction, a model is invalid, or a server does not respond
  2    an argument, a setting or a file is invalid; nothing was started
  3    serve: the port is not available
  4    serve: the engine stopped responding; start the service again
  130  stopped by Ctrl-C
"""
EXTRAS = "Install Shoal with one of the extras cpu, gpu, onnx or onnx-gpu"
"""Advice for installations without extras, which contain only what clients of a server need."""
INTERRUPTED, BROKEN_PIPE = 130, 141
"""Exit statuses that shells report for SIGINT and SIGPIPE."""


class Command(Protocol):
    """A module that implements a command. Its docstring is the description in `--help`."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the arguments of the command."""

    def run(self, options: argparse.Namespace) -> int:
        """Runs the command. Returns the exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status.

    Args:
        arguments: Name of the command and its arguments. None: the arguments of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = parser(COMMANDS.keys() & set(arguments)).parse_args(arguments)
        status = _module(options.command).run(options)
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        name = next(name for name in arguments if name in COMMANDS)
        print(f"shoal {name}: the package {error.name} is not installed. {EXTRAS}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # for example with `| head`
        # Otherwise, Python would flush standard output on exit and report the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def parser(complete: Collection[str]) -> argparse.ArgumentParser:
    """Returns the parser of the command line.

    Args:
        complete: Names of the commands to add arguments for. Only their modules are imported.
    """
    root = argparse.ArgumentParser(
        prog="shoal",
        description=__doc__,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"shoal {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, purpose) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=purpose,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # a new flag could make an abbreviation ambiguous
        )
        if name in complete:
            module = _module(name)
            command.description = module.__doc__
            module.add_arguments(command)
    return root


def _module(name: str) -> Command:
    return cast(Command, importlib.import_module(COMMANDS[name][0]))
