"""Image classification with dynamic micro-batching.

    shoal serve --port 9000            serve predictions over HTTP
    shoal predict horse.jpg *.png      classify files, without a server
    shoal predict *.png --url URL      the same, asking a server
    shoal bench --rate 100,200         how fast it answers, and under which load
    shoal models list                  what there is to serve

`shoal COMMAND --help` explains each, with examples.
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
    "bench": ("shoal.bench", "load a server and measure it"),
    "models": ("model_store.__main__", "list, verify, import, train and measure networks"),
    "completion": ("shoal.completion", "print what makes a shell complete these commands"),
}
"""Name -> the module that has it, and what it is for. A module is imported when its command is
wanted: mxnet, httpx and the service take longer than an answer to `--help` may."""

EXIT_STATUS = """\
exit status:
  0    done
  1    not all of it: an image without a prediction, a bad model, a server that does not answer
  2    a wrong argument, setting or file; nothing was begun
  3    serve: the port cannot be had
  4    serve: the engine died, and another process is wanted
  130  stopped by Ctrl-C
"""
INTERRUPTED, BROKEN_PIPE = 130, 141
"""As shells report SIGINT and SIGPIPE."""


class Command(Protocol):
    """What the module of a command has; its docstring is the text of `--help`."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, options: argparse.Namespace) -> int:
        """The exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(COMMANDS.keys() & set(arguments)).parse_args(arguments)
    try:
        status = _module(options.command).run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough; Python would say so once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def parser(wanted: Collection[str]) -> argparse.ArgumentParser:
    """The parser of the command line, which knows the arguments of the commands in `wanted`."""
    made = argparse.ArgumentParser(
        prog="shoal",
        description=__doc__,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"shoal {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, purpose) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=purpose,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # what is unambiguous today need not be tomorrow
        )
        if name in wanted:
            module = _module(name)
            command.description = module.__doc__
            module.add_arguments(command)
    return made


def _module(name: str) -> Command:
    return cast(Command, importlib.import_module(COMMANDS[name][0]))
