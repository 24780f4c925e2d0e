"""Limits the calls that all relays together pass on in one turn of the event loop.

A call takes the event loop some 0.3 ms, even where it carries no message, so a turn stays short
however many calls arrive at the same time. Relays that wait go on in the order in which they began
to wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

CALLS = 64
"""Maximum number of calls in one turn."""


class Turn:
    def __init__(self) -> None:
        self._left = CALLS
        self._waiting = deque[Callable[[], None]]()

    @property
    def is_over(self) -> bool:
        """Whether no further call may be passed on in this turn."""
        return self._left <= 0

    def count_call(self) -> None:
        """Count one call. Also allowed where the turn is over."""
        if self._left == CALLS:
            asyncio.get_running_loop().call_soon(self._begin)
        self._left -= 1

    def wait(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` in a later turn. To be called only where this one is over."""
        self._waiting.append(go_on)

    def _begin(self) -> None:
        self._left = CALLS
        while self._waiting and not self.is_over:
            self._waiting.popleft()()
