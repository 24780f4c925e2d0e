"""The supervisor: starts, restarts and stops the processes of the service.

These processes are the front ends, which serve HTTP, and the engine process, which runs the model.
The supervisor does not import MXNet and serves no requests. The supervisor owns everything that
must remain when another process ends: the listening sockets, the socket of the engine process, and
the folder that all processes share. Every process runs in a session of its own, so Ctrl-C sends
SIGINT only to the supervisor.

A process that ends is restarted after a pause (`RestartPolicy`). The service exits with status 1 if
a process fails too often, or if the model cannot be loaded at the start. At a shutdown, the
supervisor first stops the front ends, which finish their requests, and then the engine process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pathlib
import signal
import socket
import tempfile
import time
from collections.abc import Sequence

import orjson
from prometheus_client.multiprocess import mark_process_dead

from service.exit_status import ExitStatus
from service.server import listening
from service.server.server import LINGER_SECONDS
from service.settings import Settings
from service.telemetry.collectors import PIDS
from service.telemetry.logs import log
from service.workers.bootstrap import STOP, Bootstrap
from service.workers.engine_client import SOCKET
from service.workers.process import RestartPolicy, WorkerProcess

ENGINE = "engine"
"""Name of the engine process."""
GRACE = 2.0
"""Number of seconds that the supervisor waits in addition to a process's own timeouts before the
supervisor kills the process."""


class Supervisor:
    """Runs all processes of one service from its start to its end."""

    def __init__(self, settings: Settings, load_engine: str) -> None:
        """
        Args:
            settings: Settings of the whole service. `workers` is the number of front ends.
            load_engine: Function that loads the engine, as `module:function`.
        """
        self._settings = settings
        self._load_engine = load_engine
        self._stopping = asyncio.Event()
        self._status = ExitStatus.STOPPED
        self._processes: list[WorkerProcess] = []

    async def run(self) -> ExitStatus:
        """Serve until a signal arrives or a process cannot be restarted.

        Returns:
            The exit status.

        Raises:
            OSError: An address or port is not available.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._handle_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        settings, count = self._settings, self._settings.workers
        with (
            tempfile.TemporaryDirectory(prefix="shoal-") as folder,
            contextlib.ExitStack() as stack,
        ):
            address = stack.enter_context(_engine_address(folder))
            port = self._reserve(stack, settings.port)
            sockets = [listening.join(settings.host, port) for _ in range(count)]
            for sock in itertools.chain.from_iterable(sockets):
                stack.enter_context(sock)
            engine = WorkerProcess(ENGINE, self._bootstrap(settings, folder, [address]))
            share = settings.share(count).model_copy(update=self._reserve_ports(stack))
            front_ends = [
                WorkerProcess(f"front-end-{number}", self._bootstrap(share, folder, own))
                for number, own in enumerate(sockets, 1)
            ]
            self._processes = [engine, *front_ends]
            keepers = [asyncio.create_task(self._keep(process)) for process in self._processes]
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait((stopping, *keepers), return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                self._status = ExitStatus.FAILED
            stack.close()  # running front ends have copies of the sockets
            for task in (stopping, *keepers):
                task.cancel()
            results = await asyncio.gather(stopping, *keepers, return_exceptions=True)
            await self._stop(front_ends, engine)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return self._status

    def _reserve_ports(self, stack: contextlib.ExitStack) -> dict[str, int]:
        """Reserve the additional ports of the settings, which all front ends share.

        Returns the ports by setting name. Raises OSError if a port is not available.
        """
        return {
            name: self._reserve(stack, requested)
            for name in ("grpc_port", "metrics_port")
            if (requested := getattr(self._settings, name)) is not None
        }

    def _reserve(self, stack: contextlib.ExitStack, requested: int) -> int:
        """Reserve a port until `stack` is closed. Returns the port. Raises OSError."""
        port, sockets = listening.reserve(self._settings.host, requested)
        for sock in sockets:
            stack.enter_context(sock)
        return port

    def _bootstrap(
        self, settings: Settings, folder: str, sockets: Sequence[socket.socket]
    ) -> Bootstrap:
        descriptors = [sock.fileno() for sock in sockets]
        return Bootstrap.of(settings, folder, descriptors, self._load_engine)

    def _handle_stop(self, number: signal.Signals) -> None:
        if self._stopping.is_set() and number == signal.SIGINT:
            log.error("exiting immediately after a second Ctrl-C")
            self._status = ExitStatus.INTERRUPTED
            for process in self._processes:
                if process.alive:
                    process.send_signal(signal.SIGKILL)
        self._stopping.set()

    def _reload(self) -> None:
        """Tell all front ends to reload the API keys and the model."""
        for process in self._processes:
            if process.alive and process.name != ENGINE:
                process.send_signal(signal.SIGHUP)

    async def _keep(self, process: WorkerProcess) -> None:
        """Start the process, and restart it when it ends. Returns when no restart is allowed."""
        policy, first = RestartPolicy(), True
        while True:
            policy.started(time.monotonic())
            status = await self._run(process)
            pause = policy.ended(time.monotonic())
            fields = {"process": process.name, "status": status}
            cannot_load = first and process.name == ENGINE and status == ExitStatus.FAILED
            if pause is None or cannot_load:
                log.error("a process ended and is not restarted", extra={"fields": fields})
                return
            log.error("a process ended", extra={"fields": fields | {"restart_in_seconds": pause}})
            await asyncio.sleep(pause)
            first = False

    async def _run(self, worker: WorkerProcess) -> int | str:
        """Run the process once. Returns the exit status, or the error that prevented the start."""
        try:
            process = await worker.start()
        except OSError as error:
            return str(error)
        self._write_pids()
        log.info("started", extra={"fields": {"process": worker.name, "pid": process.pid}})
        try:
            return await process.wait()
        finally:
            # The call removes the gauges of the process. The counters and histograms stay.
            mark_process_dead(process.pid, worker.bootstrap.folder)  # type: ignore[no-untyped-call]  # not typed

    async def _stop(self, front_ends: Sequence[WorkerProcess], engine: WorkerProcess) -> None:
        """Stop the front ends, then the engine process. Kills processes that exceed a timeout."""
        settings = self._settings
        log.info("stopping")
        for process in front_ends:
            if process.alive:
                process.send_signal(signal.SIGTERM)
        drain = settings.drain_delay + LINGER_SECONDS + settings.shutdown_timeout + GRACE
        await asyncio.gather(*(self._wait_for_end(process, drain) for process in front_ends))
        if engine.alive:
            engine.send_line(STOP)
        await self._wait_for_end(engine, settings.shutdown_timeout + GRACE)

    async def _wait_for_end(self, worker: WorkerProcess, seconds: float) -> None:
        """Wait for the process to end. Kill it after `seconds`."""
        if not worker.alive:
            return
        assert worker.process is not None
        try:
            async with asyncio.timeout(seconds):
                status = await worker.process.wait()
        except TimeoutError:
            worker.send_signal(signal.SIGKILL)
            status = await worker.process.wait()
        # SIGTERM ends a process that has not installed its handler yet.
        if status not in (ExitStatus.STOPPED, -signal.SIGTERM):
            fields = {"process": worker.name, "status": status}
            log.error("a process did not stop cleanly", extra={"fields": fields})
            if self._status == ExitStatus.STOPPED:
                self._status = ExitStatus.FAILED

    def _write_pids(self) -> None:
        """Write the process ids to the shared folder, where `ProcessesCollector` reads them."""
        pids = {"supervisor": os.getpid()} | {
            worker.name: worker.process.pid
            for worker in self._processes
            if worker.process is not None
        }
        path = pathlib.Path(self._processes[0].bootstrap.folder, PIDS)
        new = path.with_suffix(".new")
        new.write_bytes(orjson.dumps(pids))
        new.replace(path)


def _engine_address(folder: str) -> socket.socket:
    """Return the listening socket of the engine process.

    The supervisor keeps the socket open. While the engine process is restarted, connections wait in
    its backlog. Raises OSError if the socket cannot be bound.
    """
    path = f"{folder}/{SOCKET}"
    address = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        address.bind(path)
    except OSError as error:
        address.close()
        raise OSError(f"cannot listen on {path}: {error}; set TMPDIR to a shorter path") from None
    address.listen(128)
    return address
