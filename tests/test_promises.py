"""What SECURITY.md and docs/reliability.md promise, a test holds."""

from __future__ import annotations

import ast
import re

from tests.sources import ROOT, nodes

SECURITY = (ROOT / "SECURITY.md").read_text()
RELIABILITY = (ROOT / "docs/reliability.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+?\.py(?:::\w+)?)`", SECURITY + RELIABILITY)))
PROMISES = RELIABILITY.partition("\n## ")[0]
ROWS = [line for line in PROMISES.splitlines() if line.startswith("|")][2:]
PROMISED = re.search(r"\n## What is promised\n.*?\n\n(.*?)\n## ", SECURITY, re.DOTALL)


def names_in(path: str) -> set[str]:
    """Names of the tests in a file."""
    functions = (
        node.name
        for node in nodes(ROOT / path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return {name for name in functions if name.startswith("test_")}


def test_the_test_is_there() -> None:
    for named in NAMED:
        path, _, name = named.partition("::")
        found = names_in(path)
        assert name in found if name else found, named


def test_every_row_is_whole() -> None:
    """Promise, fault, how it is injected, what was seen, and the test."""
    for row in ROWS:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5 and all(cells), row
        assert re.fullmatch(r"(`tests/[\w/.]+::\w+`(, )?)+", cells[4]), row


def test_every_sentence_names_its_test() -> None:
    assert PROMISED is not None
    sentences = [line for line in PROMISED[1].splitlines() if line.startswith("- ")]
    assert len(sentences) > 10
    assert [one for one in sentences if not re.search(r"\(`tests/.*`\)$", one)] == []
