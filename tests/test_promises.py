"""Every promise in docs/security.md and docs/reliability.md names tests that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.sources import ROOT, nodes

PAGES = ("docs/security.md", "docs/reliability.md")
TEST = re.compile(r"`(tests/[\w/.]+?\.py)::(\w+)`")


def names_in(path: str) -> set[str]:
    """Names of the tests in a file."""
    functions = (
        node.name
        for node in nodes(ROOT / path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return {name for name in functions if name.startswith("test_")}


def promises(page: str) -> list[str]:
    """The items below "What is promised"."""
    _, _, rest = (ROOT / page).read_text().partition("\n## What is promised\n")
    return [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("page", PAGES)
def test_promises_name_tests_that_exist(page: str) -> None:
    """A test that a page names is in the file that it names."""
    named = TEST.findall((ROOT / page).read_text())
    assert [test for test in named if test[1] not in names_in(test[0])] == []


@pytest.mark.parametrize("page", PAGES)
def test_promises_name_at_least_one_test(page: str) -> None:
    """Each promise ends with the tests that show it, in parentheses."""
    assert len(promises(page)) > 20
    without = [one for one in promises(page) if not re.search(r" \((`tests/\S+`,? ?)+\)$", one)]
    assert without == []
