"""The parent of a service with several processes: starts them, keeps them, stops them.

It imports no MXNet, answers no request and holds what must outlive them: the listening sockets,
the address of the engine's process, the folder with what they share. All of them live in sessions
of their own, so that Ctrl-C reaches the supervisor alone.

A process that dies is started again, with pauses (`restarts`); when that does not help the whole
service leaves with 1, as it does when the model cannot be loaded in the first place. To stop, front
ends are told first and drain; the engine's process is told when the last of them has gone.
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

from service.inference.model_host import CANNOT_SERVE
from service.server import listening
from service.server.server import LEFT_AT_ONCE, LINGER
from service.settings import Settings
from service.telemetry.collectors import PIDS
from service.telemetry.logs import log
from service.workers.bootstrap import STOP, Bootstrap
from service.workers.child import Child
from service.workers.engine_client import SOCKET
from service.workers.restarts import Restarts

ENGINE = "engine"
GRACE = 2.0
"""Seconds more than a process allows itself before it is killed."""


class Supervisor:
    """Of one service, for its life."""

    def __init__(self, settings: Settings, load_engine: str) -> None:
        self._settings = settings
        self._load_engine = load_engine
        self._stopping = asyncio.Event()
        self._status = 0
        self._left_at_once = False
        self._children: list[Child] = []

    async def run(self) -> int:
        """Until a signal, or until it is of no use to go on; the exit status.

        Raises OSError where the address cannot be had.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        settings, count = self._settings, self._settings.workers
        with tempfile.TemporaryDirectory(prefix="shoal-") as folder, contextlib.ExitStack() as own:
            address = own.enter_context(_at(folder))
            sockets = listening.bind(settings.host, settings.port, count)
            for each in itertools.chain.from_iterable(sockets):
                own.enter_context(each)
            engine = Child(ENGINE, self._orders(settings, folder, [address]))
            share = settings.share(count).model_copy(update=self._reserved(own))
            front_ends = [
                Child(f"front-end-{number}", self._orders(share, folder, mine))
                for number, mine in enumerate(sockets, 1)
            ]
            self._children = [engine, *front_ends]
            keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait((stopping, *keepers), return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                self._status = 1
            own.close()  # front ends that still accept have their own
            for task in (stopping, *keepers):
                task.cancel()
            outcomes = await asyncio.gather(stopping, *keepers, return_exceptions=True)
            await self._stop(front_ends, engine)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return LEFT_AT_ONCE if self._left_at_once else self._status

    def _reserved(self, own: contextlib.ExitStack) -> dict[str, int]:
        """The other ports that are set, kept for the front ends to share. Raises OSError."""
        found = {}
        for name in ("grpc_port", "metrics_port"):
            if (wanted := getattr(self._settings, name)) is not None:
                found[name], kept = listening.reserve(self._settings.host, wanted)
                for each in kept:
                    own.enter_context(each)
        return found

    def _orders(
        self, settings: Settings, folder: str, sockets: Sequence[socket.socket]
    ) -> Bootstrap:
        descriptors = [each.fileno() for each in sockets]
        return Bootstrap.of(settings, folder, descriptors, self._load_engine)

    def _signalled(self, number: signal.Signals) -> None:
        if self._stopping.is_set() and number == signal.SIGINT:
            log.error("leaving at once")
            self._left_at_once = True
            for child in self._children:
                if child.alive:
                    child.send(signal.SIGKILL)
        self._stopping.set()

    def _reload(self) -> None:
        """Each front end reads its keys; the first to ask reloads the model for all."""
        for child in self._children:
            if child.alive and child.name != ENGINE:
                child.send(signal.SIGHUP)

    async def _keep(self, child: Child) -> None:
        """Start it, and again when it has died; returns when that does not help."""
        restarts, first = Restarts(), True
        while True:
            restarts.started(time.monotonic())
            status = await self._run(child)
            pause = restarts.died(time.monotonic())
            told = {"process": child.name, "status": status}
            if pause is None or (first and child.name == ENGINE and status == CANNOT_SERVE):
                log.error("a process ended and is not started again", extra={"fields": told})
                return
            log.error("a process ended", extra={"fields": told | {"restart_in_seconds": pause}})
            await asyncio.sleep(pause)
            first = False

    async def _run(self, child: Child) -> int | str:
        """From its start to its end: the exit status, or why it could not be started."""
        try:
            process = await child.start()
        except OSError as error:
            return str(error)
        self._write_pids()
        log.info("started", extra={"fields": {"process": child.name, "pid": process.pid}})
        try:
            return await process.wait()
        finally:
            # What it had at the moment counts no more; what it counted does.
            mark_process_dead(process.pid, child.orders.folder)  # type: ignore[no-untyped-call]  # theirs

    async def _stop(self, front_ends: Sequence[Child], engine: Child) -> None:
        """Nobody is cut off who is within his time."""
        settings = self._settings
        log.info("stopping")
        for child in front_ends:
            if child.alive:
                child.send(signal.SIGTERM)
        drain = settings.drain_delay + LINGER + settings.shutdown_timeout + GRACE
        await asyncio.gather(*(self._gone(child, drain) for child in front_ends))
        if engine.alive:
            engine.tell(STOP)
        await self._gone(engine, settings.shutdown_timeout + GRACE)

    async def _gone(self, child: Child, seconds: float) -> None:
        """Within `seconds`, or killed."""
        if not child.alive:
            return
        assert child.process is not None
        try:
            async with asyncio.timeout(seconds):
                status = await child.process.wait()
        except TimeoutError:
            child.send(signal.SIGKILL)
            status = await child.process.wait()
        if status not in (0, -signal.SIGTERM):  # by which one dies that has not begun to serve
            told = {"process": child.name, "status": status}
            log.error("a process did not end well", extra={"fields": told})
            self._status = 1

    def _write_pids(self) -> None:
        """For whoever wants to know the processes' memory and time."""
        pids = {"supervisor": os.getpid()} | {
            child.name: child.process.pid for child in self._children if child.process is not None
        }
        path = pathlib.Path(self._children[0].orders.folder, PIDS)
        new = path.with_suffix(".new")
        new.write_bytes(orjson.dumps(pids))
        new.replace(path)


def _at(folder: str) -> socket.socket:
    """The address of the engine's process: it stays while the process is replaced, and who
    connects meanwhile waits in line. Raises OSError."""
    path = f"{folder}/{SOCKET}"
    address = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        address.bind(path)
    except OSError as error:
        address.close()
        raise OSError(f"cannot listen on {path}: {error}; set TMPDIR to a shorter path") from None
    address.listen(128)
    return address
