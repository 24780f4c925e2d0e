"""What SECURITY.md and docs/reliability.md promise, a test holds."""

from __future__ import annotations

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SECURITY = (ROOT / "SECURITY.md").read_text()
RELIABILITY = (ROOT / "docs/reliability.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+?\.py(?:::\w+)?)`", SECURITY + RELIABILITY)))
ROWS = [line for line in RELIABILITY.splitlines() if line.startswith("|")][2:]
PROMISED = re.search(r"\n## What is promised\n.*?\n\n(.*?)\n## ", SECURITY, re.DOTALL)


@functools.cache
def names_in(path: str) -> set[str]:
    """Names of the tests in a file."""
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    functions = (n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return {name for name in functions if name.startswith("test_")}


@pytest.mark.parametrize("named", NAMED)
def test_the_test_is_there(named: str) -> None:
    path, _, name = named.partition("::")
    found = names_in(path)
    assert name in found if name else found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:50])
def test_every_row_is_whole(row: str) -> None:
    """Promise, fault, how it is injected, what was seen, and the test."""
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 5 and all(cells)
    assert re.fullmatch(r"(`tests/[\w/.]+::\w+`(, )?)+", cells[4])


def test_every_sentence_names_its_test() -> None:
    assert PROMISED is not None
    sentences = [line for line in PROMISED[1].splitlines() if line.startswith("- ")]
    assert len(sentences) > 10
    assert [one for one in sentences if not re.search(r"\(`tests/.*`\)$", one)] == []
