"""The process that runs the engine and the decoders for all front ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial

from service.exit_status import ExitStatus
from service.inference.model_host import exit_status
from service.server.connection_limit import OTHER_DESCRIPTORS, raise_descriptor_limit
from service.server.memory import Memory, give_back
from service.telemetry.logs import log
from service.workers.bootstrap import Bootstrap, watch_supervisor
from service.workers.engine_server import EngineServer

CHECK_INTERVAL = 1.0
"""Number of seconds between two checks of the memory in use."""


async def run(
    bootstrap: Bootstrap, create_server: Callable[[Callable[[], None]], EngineServer]
) -> int:
    """Serve the front ends until the supervisor tells this process to stop.

    A front end is a process that serves HTTP. The supervisor stops the front ends first.

    Args:
        bootstrap: Data that the supervisor sent. `sockets` has one element.
        create_server: Function that builds the engine server. Its argument is a function that the
            server calls when the model cannot be served.

    Returns:
        The exit status of the process.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # only the supervisor handles these signals
        signal.signal(number, signal.SIG_IGN)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    watch_supervisor(bootstrap, partial(loop.call_soon_threadsafe, stop.set))
    server = create_server(stop.set)
    raise_descriptor_limit(OTHER_DESCRIPTORS + server.decoders.descriptors)
    (listening,) = bootstrap.open_sockets()
    async with server.serving(listening), server.decoders.running(), server.local.running():
        returning = asyncio.create_task(_return_memory(server))
        await stop.wait()
        returning.cancel()
    return exit_status(server.local.failure)


def restart() -> None:
    """Exit the process immediately, so that the supervisor starts a new engine process.

    The engine process calls this function when the engine has failed on every recent batch.
    """
    log.error("the engine failed on every recent batch; the process exits and is restarted")
    os._exit(ExitStatus.ENGINE_FAILING)


async def _return_memory(server: EngineServer) -> None:
    """Return memory to the operating system after many images were decoded."""
    memory = Memory([], server.images)
    while True:
        await asyncio.sleep(CHECK_INTERVAL)
        if memory.is_worth_giving_back():
            await asyncio.to_thread(give_back)
