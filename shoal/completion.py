"""Print a script that makes a shell complete the commands, flags and files of `shoal`.

    shoal completion bash > ~/.local/share/bash-completion/completions/shoal
    shoal completion zsh > ~/.zfunc/_shoal      # with fpath+=~/.zfunc before compinit in ~/.zshrc
    shoal completion fish > ~/.config/fish/completions/shoal.fish

The script takes effect in new shells. Print it again after each update of Shoal.
"""

from __future__ import annotations

import argparse

import shtab

SHELLS = ("bash", "zsh", "fish")
PATHS = {"FILE": shtab.FILE, "FOLDER": shtab.DIRECTORY, "PATH": shtab.FILE}
"""Metavar of an argument -> how its value is completed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `shoal completion`."""
    parser.add_argument("shell", choices=SHELLS)


def run(options: argparse.Namespace) -> int:
    """Prints the script. Returns the exit status."""
    from shoal.command import COMMANDS, parser

    complete_parser = parser(COMMANDS)
    _complete_paths(complete_parser)
    print(shtab.complete(complete_parser, options.shell))
    return 0


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Marks the arguments that are paths, in this command and in all commands below it."""
    for action in parser._actions:  # argparse has no public name for it, and shtab reads it too
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command)
        elif isinstance(action.metavar, str) and action.metavar in PATHS:
            action.complete = PATHS[action.metavar]  # type: ignore[attr-defined]  # read by shtab
