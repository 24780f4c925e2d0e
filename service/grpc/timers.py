"""Named timers of one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timers:
    """Timers by name. Starting a timer replaces the one with the same name."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handles: dict[object, asyncio.TimerHandle] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._handles

    def start(self, name: object, seconds: float, callback: Callable[[], None]) -> None:
        """Call `callback` in `seconds` unless the timer is canceled before."""
        self.cancel(name)
        self._handles[name] = self._loop.call_later(seconds, callback)

    def cancel(self, name: object) -> None:
        """Cancel a timer. No effect if there is none of that name."""
        if handle := self._handles.pop(name, None):
            handle.cancel()

    def cancel_all(self) -> None:
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()
