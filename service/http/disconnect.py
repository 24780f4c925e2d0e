"""Cancels the work for clients that have disconnected.

ASGI servers cancel nothing by themselves. Without this module, requests of clients that have
disconnected would stay in the queue and be computed. This project's server calls
`Disconnect.notify` when a connection is lost. Any other ASGI server sends the message
`http.disconnect`, and a task has to wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from service.http.context import context_of

WATCH_AFTER = 0.01
"""Seconds after which a task waits for the message. Most requests are answered sooner."""


class CancelScope:
    """Context manager. `cancel(reason)` cancels the block, which then raises `reason`."""

    def __init__(self) -> None:
        self._reason: Exception | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # If the server cancelled the task as well, that cancellation is passed on.
        reason, self._reason = self._reason, None
        try:
            if reason is None or self._task.uncancel():
                return
            if kind in (None, asyncio.CancelledError):
                raise reason from None
        finally:
            del reason  # breaks the cycle between the exception and its traceback

    def cancel(self, reason: Exception) -> None:
        """Cancel the block. Call it once at most."""
        self._reason = reason
        self._task.cancel()


class Disconnect:
    """The end of a client's connection, watched by one request at a time."""

    def __init__(self) -> None:
        self._happened = False
        self._callback: Callable[[], None] | None = None

    def notify(self) -> None:
        """The client has disconnected. Call it once at most."""
        self._happened = True
        if self._callback is not None:
            self._callback()

    def watch(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the client disconnects, immediately if it already has, unless
        `unwatch` is called first."""
        self._callback = callback
        if self._happened:
            callback()

    def unwatch(self) -> None:
        self._callback = None


class cancel_on_disconnect(CancelScope):  # noqa: N801  # reads as a statement
    """`with cancel_on_disconnect(request):` cancels the block when the client disconnects, and
    raises ClientDisconnect.

    The body must have been read: the next message is then the disconnect.
    """

    def __init__(self, request: Request) -> None:
        super().__init__()
        self._disconnect: Disconnect | _DisconnectMessage = context_of(
            request.scope
        ).disconnect or _DisconnectMessage(request.receive)

    def __enter__(self) -> None:
        super().__enter__()
        self._disconnect.watch(self._disconnected)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._disconnect.unwatch()
        super().__exit__(kind, *rest)

    def _disconnected(self) -> None:
        self.cancel(ClientDisconnect())


class _DisconnectMessage:
    """Has the interface of `Disconnect`, for servers that send a message."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None

    def watch(self, callback: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._start, callback)

    def unwatch(self) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # breaks the cycle between the task and this object

    def _start(self, callback: Callable[[], None]) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch(callback))

    async def _watch(self, callback: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        callback()
