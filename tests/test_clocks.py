"""Durations are told by clocks that nobody sets."""

from __future__ import annotations

import ast

from tests.sources import ROOT, modules, nodes

TELL_THE_TIME = {ROOT / "service/telemetry/tracing.py"}
WALL = {"time", "time_ns", "now", "utcnow", "today"}


def test_nobody_asks_what_time_it_is() -> None:
    """`time.time` and `datetime.now` jump when the clock is set; an event loop's own `time` does
    not. Only lines of the log and spans of a trace say at what time of the day they began."""
    read = set(modules("batching", "model_store", "service"))
    assert read > TELL_THE_TIME
    for path in read - TELL_THE_TIME:
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
                names = {alias.name for alias in node.names}
                assert not names & (WALL | {"datetime", "date"}), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asked = node.value.id in ("time", "datetime", "date") and node.attr in WALL
                assert not asked, path
