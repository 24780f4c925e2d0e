"""Noticing that a client has left while its request waits.

ASGI servers say so by the message `http.disconnect`, and cancel nothing by themselves: without
this, a queue fills with the work of people who are gone.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.requests import ClientDisconnect, Request

WATCH_AFTER = 0.01
"""Seconds. A request that is answered sooner is not worth a watcher."""


class ends_with_client:  # noqa: N801  # reads as a statement: `with ends_with_client(request):`
    """What is awaited within is cancelled, and ClientDisconnect raised, when the client leaves.

    The body must have been read: from then on the next message is the departure.
    """

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._left = False
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._start)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        # A server that gives up on us cancels too: such a cancellation goes on its way.
        if self._left and self._task.uncancel() == 0 and kind in (None, asyncio.CancelledError):
            raise ClientDisconnect from None

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._task.cancel()
