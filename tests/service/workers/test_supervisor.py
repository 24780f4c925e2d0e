"""Tests when the supervisor restarts a process, and in which order it stops them."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import socket
import tempfile
from typing import Any, cast

import orjson
import pytest

from service.exit_status import ExitStatus
from service.settings import Settings
from service.telemetry.collectors import PIDS
from service.workers.bootstrap import STOP, Bootstrap
from service.workers.engine_client import SOCKET
from service.workers.process import MAX_RESTARTS, WorkerProcess
from service.workers.supervisor import ENGINE, GRACE, Supervisor, _engine_address
from tests.batching.virtual_time import virtual_time

SETTINGS = Settings(workers=2, port=0, shutdown_timeout=5)
LOAD_ENGINE = "tests.e2e.scripted:load"


class FakeProcess:
    """A running process with the id 1234. It ends with the status that `end` gets."""

    pid = 1234

    def __init__(self, status: int | None = None) -> None:
        self.returncode = status
        self._ended = asyncio.Event()
        if status is not None:
            self._ended.set()

    def end(self, status: int) -> None:
        self.returncode = status
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode


class FakeWorker(WorkerProcess):
    """A worker whose processes end at once with the next of `statuses`. An exception among them is
    raised by `start`. After the last one, processes run until a signal in `obeys`."""

    def __init__(
        self,
        name: str,
        folder: pathlib.Path,
        *statuses: int | Exception,
        events: list[str] | None = None,
        obeys: tuple[object, ...] = (signal.SIGTERM, signal.SIGKILL, STOP),
    ) -> None:
        super().__init__(name, Bootstrap.of(SETTINGS, str(folder), [], LOAD_ENGINE))
        self.starts = 0
        self.running = asyncio.Event()
        """Set when a process runs that does not end at once."""
        self.events = events if events is not None else []
        self._statuses = list(statuses)
        self._obeys = obeys

    async def start(self) -> Any:
        self.starts += 1
        status = self._statuses.pop(0) if self._statuses else None
        if isinstance(status, Exception):
            raise status
        self.process = cast(Any, process := FakeProcess(status))
        if status is None:
            self.running.set()
        return process

    def send_signal(self, number: signal.Signals) -> None:
        self._get(number, f"{number.name} to {self.name}", -number)

    def send_line(self, line: bytes) -> None:
        self._get(line, f"{line.decode().strip()} to {self.name}", 0)

    def _get(self, message: object, event: str, status: int) -> None:
        self.events.append(event)
        if message in self._obeys:
            cast(FakeProcess, self.process).end(status)


def supervisor(*workers: WorkerProcess) -> Supervisor:
    one = Supervisor(SETTINGS, LOAD_ENGINE)
    one._processes = list(workers)
    return one


@virtual_time
async def test_supervisor_does_not_restart_an_engine_that_cannot_load(
    tmp_path: pathlib.Path,
) -> None:
    """If the engine process fails at its first start, restarts would not help."""
    engine = FakeWorker(ENGINE, tmp_path, ExitStatus.FAILED)
    await supervisor(engine)._keep(engine)
    assert engine.starts == 1


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        (ENGINE, [-signal.SIGKILL, ExitStatus.FAILED]),
        (ENGINE, [ExitStatus.ENGINE_DEAD]),
        ("front-end-1", [ExitStatus.FAILED]),
        ("front-end-1", [ExitStatus.STOPPED]),
        ("front-end-1", [OSError("no memory")]),
    ],
    ids=["engine that has served", "dead engine", "front end", "clean end", "no start"],
)
@virtual_time
async def test_supervisor_restarts_processes(
    tmp_path: pathlib.Path, name: str, statuses: list[int | Exception]
) -> None:
    """All other processes are restarted, whatever they ended with."""
    worker = FakeWorker(name, tmp_path, *statuses)
    keeping = asyncio.create_task(supervisor(worker)._keep(worker))
    await worker.running.wait()
    assert worker.starts == len(statuses) + 1
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


@virtual_time
async def test_supervisor_gives_up_after_restarts_in_a_row(tmp_path: pathlib.Path) -> None:
    """A process that ends immediately is restarted `MAX_RESTARTS` times, after growing pauses."""
    worker = FakeWorker("front-end-1", tmp_path, *[1] * 20)
    await supervisor(worker)._keep(worker)
    assert worker.starts == MAX_RESTARTS + 1
    assert asyncio.get_running_loop().time() == pytest.approx(0 + 0.5 + 1 + 2 + 4 + 8)


@virtual_time
async def test_supervisor_drops_gauges_of_a_process_that_ended(tmp_path: pathlib.Path) -> None:
    """The gauges of a process end with it, and its counters stay."""
    for kind in "gauge_livesum", "counter":
        (tmp_path / f"{kind}_1234.db").touch()
    worker = FakeWorker("front-end-1", tmp_path, ExitStatus.FAILED)
    assert await supervisor(worker)._run(worker) == ExitStatus.FAILED
    assert set(os.listdir(tmp_path)) == {"counter_1234.db", PIDS}


@virtual_time
async def test_supervisor_writes_process_ids(tmp_path: pathlib.Path) -> None:
    """The file for metrics has the supervisor and every process that was started."""
    engine, front_end = (FakeWorker(name, tmp_path, 0) for name in (ENGINE, "front-end-1"))
    one = supervisor(engine, front_end)
    await one._run(engine)
    pids = orjson.loads((tmp_path / PIDS).read_bytes())
    assert pids == {"supervisor": os.getpid(), ENGINE: 1234}
    await one._run(front_end)
    assert "front-end-1" in orjson.loads((tmp_path / PIDS).read_bytes())


@virtual_time
async def test_supervisor_stops_front_ends_before_the_engine() -> None:
    """The engine process computes until all front ends have answered their requests."""
    events: list[str] = []
    folder = pathlib.Path()
    engine = FakeWorker(ENGINE, folder, events=events)
    fast, slow = (FakeWorker(f"front-end-{n}", folder, events=events) for n in (1, 2))
    slow._obeys = ()
    for worker in engine, fast, slow:
        await worker.start()
    one = supervisor(engine, fast, slow)
    stopping = asyncio.create_task(one._stop([fast, slow], engine))
    await asyncio.sleep(SETTINGS.shutdown_timeout)
    assert events == ["SIGTERM to front-end-1", "SIGTERM to front-end-2"]
    cast(FakeProcess, slow.process).end(-signal.SIGTERM)  # not handled yet
    await stopping
    assert events[2:] == ["stop to engine"]
    assert one._status == ExitStatus.STOPPED


@virtual_time
async def test_supervisor_kills_processes_that_exceed_their_timeout() -> None:
    """A process that does not stop is killed after its own timeout and `GRACE`, and the service
    ends with status 1."""
    engine = FakeWorker(ENGINE, pathlib.Path(), obeys=(signal.SIGKILL,))
    await engine.start()
    one = supervisor(engine)
    await one._stop([], engine)
    assert engine.events == ["stop to engine", "SIGKILL to engine"]
    assert asyncio.get_running_loop().time() == SETTINGS.shutdown_timeout + GRACE
    assert one._status == ExitStatus.FAILED


@virtual_time
async def test_supervisor_does_not_wait_for_processes_that_have_ended() -> None:
    """Processes that have ended, or were never started, get no signal."""
    ended = FakeWorker("front-end-1", pathlib.Path(), 0)
    await ended.start()
    never = FakeWorker(ENGINE, pathlib.Path())
    one = supervisor(never, ended)
    await one._stop([ended], never)
    assert ended.events == never.events == []
    assert one._status == ExitStatus.STOPPED


@virtual_time
async def test_supervisor_reloads_front_ends_only() -> None:
    """SIGHUP goes to the front ends that run. The engine process reloads for one of them."""
    engine, running = (FakeWorker(name, pathlib.Path()) for name in (ENGINE, "front-end-1"))
    ended = FakeWorker("front-end-2", pathlib.Path(), 0)
    for worker in engine, running, ended:
        await worker.start()
    supervisor(engine, running, ended)._reload()
    assert (engine.events, running.events, ended.events) == ([], ["SIGHUP to front-end-1"], [])


@pytest.mark.parametrize(
    ("signals", "status", "killed"),
    [
        ([signal.SIGTERM, signal.SIGTERM], ExitStatus.STOPPED, []),
        ([signal.SIGINT, signal.SIGTERM], ExitStatus.STOPPED, []),
        ([signal.SIGTERM, signal.SIGINT], ExitStatus.INTERRUPTED, ["SIGKILL to engine"]),
    ],
)
@virtual_time
async def test_supervisor_exits_at_a_second_ctrl_c(
    signals: list[signal.Signals], status: ExitStatus, killed: list[str]
) -> None:
    """SIGINT after another signal kills all processes. A second SIGTERM has no effect."""
    engine = FakeWorker(ENGINE, pathlib.Path())
    await engine.start()
    one = supervisor(engine)
    for number in signals:
        one._handle_stop(number)
    assert (one._stopping.is_set(), one._status) == (True, status)
    assert engine.events == killed


@pytest.mark.parametrize("setting", ["port", "grpc_port", "metrics_port"])
async def test_supervisor_needs_its_ports(setting: str) -> None:
    """If another program uses a port, `run` raises an OSError that names it, before any process is
    started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = SETTINGS.model_copy(update={setting: port})
        one = Supervisor(settings, "tests.nothing:missing")
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            await one.run()
    assert one._processes == []


def test_engine_address_accepts_connections_before_the_engine_runs() -> None:
    """Front ends can connect while the engine process is being restarted."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _engine_address(folder) as address,
        socket.socket(socket.AF_UNIX) as front_end,
    ):
        front_end.connect(f"{folder}/{SOCKET}")
        accepted, _ = address.accept()
        accepted.close()


def test_engine_address_explains_a_path_that_is_too_long(tmp_path: pathlib.Path) -> None:
    """The error says what to do: paths of sockets have about a hundred bytes."""
    folder = tmp_path / ("x" * 120)
    with pytest.raises(OSError, match="set TMPDIR to a shorter path"):
        _engine_address(str(folder))
