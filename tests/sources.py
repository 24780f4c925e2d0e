"""The source code of the packages, for tests that inspect it. Each file is parsed once."""

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
    """Returns all syntax nodes of a module."""
    return list(ast.walk(ast.parse(path.read_text())))
