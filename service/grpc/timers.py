"""Keeps the timers of one connection, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timers:
    """Starts and cancels timers by name. A new timer replaces the timer with the same name."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handles: dict[object, asyncio.TimerHandle] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._handles

    def start(self, name: object, seconds: float, callback: Callable[[], None]) -> None:
        """Call `callback` after `seconds`, unless the timer is canceled or replaced before."""
        self.cancel(name)
        self._handles[name] = self._loop.call_later(seconds, callback)

    def cancel(self, name: object) -> None:
        """Cancel a timer. No effect if there is no timer with that name."""
        if handle := self._handles.pop(name, None):
            handle.cancel()

    def cancel_all(self) -> None:
        """Cancel all timers of the connection."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()
