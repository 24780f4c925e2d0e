"""Print a script that lets a shell complete the commands, flags and files of `shoal`.

    shoal completion bash > ~/.local/share/bash-completion/completions/shoal
    shoal completion zsh > ~/.zfunc/_shoal      # needs fpath+=~/.zfunc before compinit in ~/.zshrc
    shoal completion fish > ~/.config/fish/completions/shoal.fish

The script takes effect in new shells. Run the command again after each update of Shoal.
"""

from __future__ import annotations

import argparse
import importlib

import shtab

SHELLS = ("bash", "zsh", "fish")
PATHS = {"FILE": shtab.FILE, "FOLDER": shtab.DIRECTORY, "PATH": shtab.FILE}
"""Kind of completion for an argument, by the metavar of the argument."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `shoal completion`."""
    parser.add_argument("shell", choices=SHELLS)


def run(options: argparse.Namespace) -> int:
    """Prints the completion script. Returns the exit status."""
    from shoal.command import COMMANDS, parser

    complete_parser = parser([name for name, (module, _) in COMMANDS.items() if _installed(module)])
    _complete_paths(complete_parser)
    print(shtab.complete(complete_parser, options.shell))
    return 0


def _installed(module: str) -> bool:
    """Whether a command's module can be imported. Some modules need an extra, such as `onnx`."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    return True


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Marks the arguments that shells complete as paths, in a parser and its subcommands."""
    for action in parser._actions:  # argparse has no public way to list its arguments
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command)
        elif isinstance(action.metavar, str) and action.metavar in PATHS:
            action.complete = PATHS[action.metavar]  # type: ignore[attr-defined]  # read by shtab
