"""Comparison of servers: results, targets and the report."""

from __future__ import annotations

import asyncio
import os
import pathlib
import subprocess

import pytest

from benchmarks import side_by_side
from benchmarks.competitors import MOSEC, TUTORIAL
from benchmarks.engine import SERVED, in_a_process
from benchmarks.report import FORM, RAW, Figures, Report, medians
from benchmarks.servers import Server
from benchmarks.side_by_side import Turn
from benchmarks.stopping import lost_on_stop


class FakeProcess(subprocess.Popen[bytes]):
    """A process that sets an event when it is told to stop."""

    def __init__(self) -> None:
        self.pid = 0
        self.stopped = asyncio.Event()

    def terminate(self) -> None:
        self.stopped.set()

    def __del__(self) -> None:
        """There is no process to wait for."""


async def test_lost_on_stop_counts_requests_without_a_complete_answer(
    tmp_path: pathlib.Path,
) -> None:
    """An answer counts as lost if it is missing, cut short, or not 200."""
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno",
        b"",
    ]
    process = FakeProcess()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = int(await reader.readexactly(1))
        await process.stopped.wait()
        writer.write(answers[number])
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        server = Server(process, listening.sockets[0].getsockname()[1], tmp_path / "log")
        assert await lost_on_stop(server, [b"0", b"1", b"2", b"3"]) == 24


def test_medians_are_of_the_rounds_and_losses_are_maxima() -> None:
    """Rates and times are medians; losses are maxima; missing rounds do not count."""
    rounds = [
        {
            "a": Figures([], throughput=1.0, lost=0, half={"b": (1.0, 10.0)}),
            "b": Figures([], vga=4),
        },
        {"a": Figures([], throughput=9.0, lost=2, half={"b": (2.0, 50.0)})},
        {"a": Figures([], throughput=3.0, half={"b": (9.0, 30.0)})},
    ]
    result = medians(rounds)
    assert result["a"] == Figures([], throughput=3.0, lost=2, half={"b": (2.0, 30.0)})
    assert result["b"] == Figures([], vga=4)


def test_report_compares_each_competitor_with_its_target() -> None:
    """Raw bodies are compared with Mosec's, and forms with those of the other competitors."""
    figures = {
        MOSEC: Figures([], throughput=100.0),
        RAW: Figures([], throughput=101.0, lost=0),
        FORM: Figures([], throughput=90.0, lost=1),
        TUTORIAL: Figures([], throughput=2.0),
    }
    verdicts = list(Report(figures, 1, "machine", []).verdicts())
    assert f"yes: throughput against {MOSEC}: 1.01x (at least 1x)" in verdicts
    assert f" NO: throughput against {TUTORIAL}: 45.00x (at least 60x)" in verdicts
    assert f" NO: {FORM}: lost, rejected or wrong responses: 1" in verdicts


@pytest.mark.slow
def test_report_is_written_as_table_json_and_plot(tmp_path: pathlib.Path) -> None:
    """The report is written in three formats; infinite values become null in JSON."""
    figures = {
        RAW: Figures(["horse"], throughput=1234.5, crowd=float("inf"), half={MOSEC: (0.1, 0.2)})
    }
    Report(figures, 3, "machine", ["mosec 1"]).write(tmp_path / "bench")
    assert "| Shoal, raw body | 1,234 |" in (tmp_path / "bench.md").read_text()
    assert '"crowd": null' in (tmp_path / "bench.json").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 1000


@pytest.mark.slow
def test_engine_keeps_its_throughput_beside_a_busy_process() -> None:
    """A fifth of the throughput remains; spinning threads would leave a twentieth.

    Other work on the machine may spoil a try, but not all four.
    """
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    tries = (in_a_process(SERVED, [16], rounds=3, seconds=0.4)[0].kept for _ in range(4))
    assert any(kept > 0.2 for kept in tries)


def test_side_by_side_computes_ratios_within_a_round() -> None:
    """A machine that becomes half as fast for all servers changes no ratio."""
    first = [Turn(throughput, 1e-3, 0.01, 0.1) for throughput in (1000.0, 500.0, 900.0)]
    other = [Turn(1.5 * turn.throughput, 2e-3, 0.02, 0.0) for turn in first]
    rows = side_by_side.table({"one": first, "other": other}).splitlines()
    assert rows[2] == "| one | 800 | 1.00 (0.00) | 1.00 | 10 | 10% |"
    assert rows[3] == "| other | 1,200 | 1.50 (0.00) | 2.00 | 20 | 0% |"
