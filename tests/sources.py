"""The code of the packages, as the tests that read it see it: each file parsed once."""

from __future__ import annotations

import ast
import functools
import pathlib
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parent.parent


def modules(*packages: str) -> list[pathlib.Path]:
    return sorted(path for package in packages for path in (ROOT / package).glob("**/*.py"))


@functools.cache
def nodes(path: pathlib.Path) -> Sequence[ast.AST]:
    """Everything in a module."""
    return list(ast.walk(ast.parse(path.read_text())))
