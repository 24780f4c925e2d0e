"""Durations are measured with clocks that are never set."""

from __future__ import annotations

import ast

from tests.sources import ROOT, modules, nodes

MAY_READ_WALL_CLOCK = {ROOT / "service/telemetry/tracing.py"}
WALL = {"time", "time_ns", "now", "utcnow", "today"}


def test_durations_use_clocks_that_never_jump() -> None:
    """No module but tracing reads the wall clock, which jumps when it is set."""
    read = set(modules("batching", "model_store", "service"))
    assert read > MAY_READ_WALL_CLOCK
    for path in read - MAY_READ_WALL_CLOCK:
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
                names = {alias.name for alias in node.names}
                assert not names & (WALL | {"datetime", "date"}), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                reads_wall_clock = (
                    node.value.id in ("time", "datetime", "date") and node.attr in WALL
                )
                assert not reads_wall_clock, path
