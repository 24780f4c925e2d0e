"""A comparison counts what it says, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import pathlib
import subprocess
import sys
import time

import pytest

from benchmarks import side_by_side
from benchmarks.contestants import MOSEC, ROOT, SHOAL, TUTORIAL, Contestant, Server, serving, tree
from benchmarks.engine import SERVED, in_a_process
from benchmarks.outcome import FORM, RAW, Figures, Report, medians
from benchmarks.side_by_side import Turn
from benchmarks.stopping import lost_on_stop

BUSY = "end = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
FAMILY = f"""
import subprocess, sys, time
subprocess.run([sys.executable, "-c", '''import time\n{BUSY}'''])
child = subprocess.Popen([sys.executable, "-c", '''import time\n{BUSY}\ntime.sleep(60)'''])
{BUSY}
print("done", flush=True)
time.sleep(60)
"""


def contestant(program: str) -> Contestant:
    return Contestant(
        "one", (sys.executable, "-c", program.replace("{", "{{").replace("}", "}}")), ()
    )


def running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_servers_time_is_that_of_its_family(tmp_path: pathlib.Path) -> None:
    """CPU of the process, of its children, and of those that have died; and none of them is left,
    also where the measurement fails."""
    family: list[int] = []

    def fails() -> None:
        nonlocal family
        with serving(contestant(FAMILY), tmp_path / "log") as server:
            end = time.monotonic() + 30
            while server.cpu_seconds() < 1.2 and time.monotonic() < end:
                time.sleep(0.05)
            assert 1.2 <= server.cpu_seconds() < 2.4
            family = [pid for pid, _ in tree(server.pid)]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert len(family) == 2
    assert not any(running(pid) for pid in family)


DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(60)
"""


@pytest.mark.slow
def test_a_child_that_stays_is_ended(tmp_path: pathlib.Path) -> None:
    """Whatever its parent has forgotten, and after its parent has gone."""
    with serving(contestant(DEAF), tmp_path / "log") as server:
        end = time.monotonic() + 30
        while len(family := tree(server.pid)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.3)
    assert len(family) == 2
    assert not any(running(pid) for pid, _ in family)


class Stopping(Server):
    """Answers every second request, and the others not."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.stopped = asyncio.Event()

    def terminate(self) -> None:
        self.stopped.set()


async def test_what_a_stop_loses() -> None:
    """Requests whose answer does not come, is cut short, or is another than 200."""
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno",
        b"",
    ]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = int(await reader.readexactly(1))
        await server.stopped.wait()
        writer.write(answers[number])
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        server = Stopping(listening.sockets[0].getsockname()[1])
        assert await lost_on_stop(server, [b"0", b"1", b"2", b"3"]) == 24


def test_medians_and_the_worst() -> None:
    """Rates and times are medians of the rounds; of what was lost the worst counts, and a
    contestant that failed in a round has the others'."""
    rounds = [
        {
            "a": Figures([], throughput=1.0, lost=0, half={"b": (1.0, 10.0)}),
            "b": Figures([], vga=4),
        },
        {"a": Figures([], throughput=9.0, lost=2, half={"b": (2.0, 50.0)})},
        {"a": Figures([], throughput=3.0, half={"b": (9.0, 30.0)})},
    ]
    found = medians(rounds)
    assert found["a"] == Figures([], throughput=3.0, lost=2, half={"b": (2.0, 30.0)})
    assert found["b"] == Figures([], vga=4)


def test_targets() -> None:
    """Ours against each: the raw body against Mosec's, the form against forms."""
    found = {
        MOSEC: Figures([], throughput=100.0),
        RAW: Figures([], throughput=101.0, lost=0),
        FORM: Figures([], throughput=90.0, lost=1),
        TUTORIAL: Figures([], throughput=2.0),
    }
    verdicts = list(Report(found, 1, "here", []).verdicts())
    assert f"yes: throughput against {MOSEC}: 1.01x (at least 1x)" in verdicts
    assert f" NO: throughput against {TUTORIAL}: 45.00x (at least 60x)" in verdicts
    assert f" NO: {FORM}: 1 requests lost, refused or mixed up" in verdicts


@pytest.mark.slow
def test_the_report_is_written(tmp_path: pathlib.Path) -> None:
    """As a table, as plain data, as a picture; what never happened is not a number."""
    found = {
        RAW: Figures(["horse"], throughput=1234.5, crowd=float("inf"), half={MOSEC: (0.1, 0.2)})
    }
    Report(found, 3, "here", ["mosec 1"]).write(tmp_path / "bench")
    assert "| Shoal, raw body | 1,234 |" in (tmp_path / "bench.md").read_text()
    assert '"crowd": null' in (tmp_path / "bench.json").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_engine_does_not_collapse_beside_a_busy_process() -> None:
    """Threads that spin while they wait would leave a twentieth; sleeping ones half or more. Other
    work on the machine may spoil a try, not four."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    tries = (in_a_process(SERVED, [16], rounds=3, seconds=0.4)[0].kept for _ in range(4))
    assert any(kept > 0.2 for kept in tries)


@pytest.mark.slow
def test_who_ends_a_comparison_ends_its_servers(tmp_path: pathlib.Path) -> None:
    """SIGTERM to it leaves no server behind."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.compare", "--only", SHOAL, "--out", str(tmp_path)],
        cwd=ROOT,
    )
    end = time.monotonic() + 30
    while len(family := tree(process.pid)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 143
    assert len(family) == 2
    assert not any(running(pid) for pid, _ in family)


def test_ratios_are_within_a_round() -> None:
    """A machine that becomes half as fast for everybody changes no ratio."""
    first = [Turn(throughput, 1e-3, 0.01, 0.1) for throughput in (1000.0, 500.0, 900.0)]
    other = [Turn(1.5 * turn.throughput, 2e-3, 0.02, 0.0) for turn in first]
    rows = side_by_side.table({"one": first, "other": other}).splitlines()
    assert rows[2] == "| one | 800 | 1.00 (0.00) | 1.00 | 10 | 10% |"
    assert rows[3] == "| other | 1,200 | 1.50 (0.00) | 2.00 | 20 | 0% |"
