"""Print what makes a shell complete commands, flags and files of `shoal`.

    shoal completion bash > ~/.local/share/bash-completion/completions/shoal
    shoal completion zsh > ~/.zfunc/_shoal      # with fpath+=~/.zfunc before compinit in ~/.zshrc
    shoal completion fish > ~/.config/fish/completions/shoal.fish

It holds in shells that start afterwards. Print it anew after an update of Shoal.
"""

from __future__ import annotations

import argparse

import shtab

SHELLS = ("bash", "zsh", "fish")
PATHS = {"FILE": shtab.FILE, "FOLDER": shtab.DIRECTORY, "PATH": shtab.FILE}
"""What an argument is called in `--help` -> how it is completed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def run(options: argparse.Namespace) -> int:
    from shoal.command import COMMANDS, parser

    whole = parser(COMMANDS)
    _complete_paths(whole)
    print(shtab.complete(whole, options.shell))
    return 0


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Tell shtab which arguments are paths, here and in every command below."""
    for action in parser._actions:  # which has no public name; shtab itself reads it
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command)
        elif isinstance(action.metavar, str) and action.metavar in PATHS:
            action.complete = PATHS[action.metavar]  # type: ignore[attr-defined]  # shtab's way
