"""Noticing that a client has left while its request waits.

ASGI servers cancel nothing by themselves: without this, a queue fills with the work of people who
are gone. Our connections put a `Disconnect` into each scope and call it when it happens. Any other
server says so by the message `http.disconnect`, which takes a task to wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from service.http.cancel_scope import CancelScope

DISCONNECT = "shoal.departure"
"""In a scope, where the server has put one."""
WATCH_AFTER = 0.01
"""Seconds. A request that is answered sooner is not worth a task."""


class Disconnect:
    """Of a client. Its requests watch for it one after another."""

    def __init__(self) -> None:
        self._happened = False
        self._tell: Callable[[], None] | None = None

    def happens(self) -> None:
        """Once at most."""
        self._happened = True
        if self._tell is not None:
            self._tell()

    def watch(self, tell: Callable[[], None]) -> None:
        """`tell` is called when it happens, at once if it has, unless `forget` is called first."""
        self._tell = tell
        if self._happened:
            tell()

    def forget(self) -> None:
        self._tell = None


class cancel_on_disconnect(CancelScope):  # noqa: N801  # a statement: `with ends_with_client(...):`
    """What is awaited within is cancelled, and ClientDisconnect raised, when the client leaves.

    The body must have been read: from then on the next message is the departure.
    """

    def __init__(self, request: Request) -> None:
        super().__init__()
        self._departure: Disconnect | _Message = request.scope.get(DISCONNECT) or _Message(
            request.receive
        )

    def __enter__(self) -> None:
        super().__enter__()
        self._departure.watch(self._end)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._departure.forget()
        super().__exit__(kind, *rest)

    def _end(self) -> None:
        self.interrupt(ClientDisconnect())


class _Message:
    """A departure that a server tells by a message."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None

    def watch(self, tell: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._start, tell)

    def forget(self) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # or it would keep itself

    def _start(self, tell: Callable[[], None]) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch(tell))

    async def _watch(self, tell: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        tell()
