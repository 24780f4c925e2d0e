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
"""Seconds between two checks of the memory in use."""


async def run(
    bootstrap: Bootstrap, create_server: Callable[[Callable[[], None]], EngineServer]
) -> int:
    """Compute until the supervisor says that all front ends have ended.

    Args:
        bootstrap: What the supervisor sent. It names one socket.
        create_server: Builds the engine server. Its argument is the function to call when the model
            cannot be served.

    Returns:
        The exit status.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the supervisor handles them for all processes
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
    """Exit the process at once, so that the supervisor starts another. Called when the engine has
    failed on every recent batch."""
    log.error("the engine failed on every recent batch; exiting to be restarted")
    os._exit(ExitStatus.ENGINE_FAILING)


async def _return_memory(server: EngineServer) -> None:
    """Return memory to the system after many images have been decoded."""
    memory = Memory([], server.images)
    while True:
        await asyncio.sleep(CHECK_INTERVAL)
        if memory.is_worth_giving_back():
            await asyncio.to_thread(give_back)
