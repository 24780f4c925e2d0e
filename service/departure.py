"""Noticing that a client has left while its request waits.

ASGI servers say so by the message `http.disconnect`, and cancel nothing by themselves: without
this, a queue fills with the work of people who are gone.
"""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from service.interruption import Interruptible

WATCH_AFTER = 0.01
"""Seconds. A request that is answered sooner is not worth a watcher."""


class ends_with_client(Interruptible):  # noqa: N801  # a statement: `with ends_with_client(...):`
    """What is awaited within is cancelled, and ClientDisconnect raised, when the client leaves.

    The body must have been read: from then on the next message is the departure.
    """

    def __init__(self, request: Request) -> None:
        super().__init__()
        self._receive = request.receive
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        super().__enter__()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._start)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # or it would keep itself
        super().__exit__(kind, *rest)

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.interrupt(ClientDisconnect())
