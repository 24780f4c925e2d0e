"""Durations are told by clocks that nobody sets."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(
    path
    for package in ("batching", "model_store", "service")
    for path in (ROOT / package).glob("**/*.py")
)
TELL_THE_TIME = {ROOT / "service/tracing.py"}
WALL = {"time", "time_ns", "now", "utcnow", "today"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_asks_what_time_it_is(path: pathlib.Path) -> None:
    """`time.time` and `datetime.now` jump when the clock is set; an event loop's own `time` does
    not. Only lines of the log and spans of a trace say at what time of the day they began."""
    if path in TELL_THE_TIME:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
            assert not {alias.name for alias in node.names} & (WALL | {"datetime", "date"})
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert not (node.value.id in ("time", "datetime", "date") and node.attr in WALL)
