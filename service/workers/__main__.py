"""`python -m service.workers NAME`: one of several processes, started by their supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from functools import partial

import uvloop

from service.__main__ import serve
from service.app import create_app, create_engine_server, imported
from service.inference.model_host import exit_status
from service.server.connection_limit import bound
from service.server.memory import Memory, give_back
from service.settings import Settings
from service.telemetry.logs import configure, log
from service.workers.bootstrap import Bootstrap, obey, receive
from service.workers.engine_server import EngineServer
from service.workers.supervisor import ENGINE

CHECK_EVERY = 1.0
"""Seconds."""
ILL = 70
"""Exit status of an engine's process that computes nothing any more."""


def main(name: str) -> int:
    orders, settings = receive()
    configure(settings)
    if name == ENGINE:
        return uvloop.run(engine(orders, settings))
    return front_end(orders, settings)


def front_end(orders: Bootstrap, settings: Settings) -> int:
    """Speaks HTTP until SIGTERM."""
    obey(orders, lambda: None)
    app = create_app(settings, folder=orders.folder)
    return serve(app, settings, [socket.socket(fileno=each) for each in orders.sockets])


async def engine(orders: Bootstrap, settings: Settings) -> int:
    """Computes until the supervisor says that all front ends have gone. Signals that are sent to
    all processes alike are for the supervisor."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    obey(orders, partial(loop.call_soon_threadsafe, stop.set))
    hub = create_engine_server(
        settings, imported(orders.load_engine), orders.folder, on_failure=stop.set
    )
    bound(0, decoders=hub.decoders.descriptors)  # raises this process' limit
    (descriptor,) = orders.sockets
    async with (
        hub.serving(socket.socket(fileno=descriptor)),
        hub.decoders.running(),
        hub.local.running(),
    ):
        watch = asyncio.create_task(_watch(hub))
        await stop.wait()
        watch.cancel()
    return exit_status(hub.local.failure)


async def _watch(hub: EngineServer) -> None:
    """Leaves when only a new process helps, which the supervisor starts here; and gives memory back
    after many images have been decoded."""
    memory = Memory([], hub.images)
    while True:
        await asyncio.sleep(CHECK_EVERY)
        if memory.is_worth_giving_back():
            await asyncio.to_thread(give_back)
        figures = await hub.local.stats()
        if figures is not None and not figures.healthy:
            log.error("the engine failed on everything lately; leaving for another process")
            os._exit(ILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
