"""When a process that died is started again, and when no more. Pure: it is told the time.

The first restart is immediate; each that follows soon waits twice as long as the one before. A
process that lived for `STEADY` seconds starts with a clean sheet.
"""

from __future__ import annotations

STEADY = 60.0
"""Seconds of life after which earlier deaths are forgotten."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds before the second restart in a row, and at most before any."""
MOST = 6
"""Restarts in a row that do not last. After that the trouble is not the process's own."""


class Restarts:
    """Of one process."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._started = 0.0

    def started(self, now: float) -> None:
        self._started = now

    def died(self, now: float) -> float | None:
        """Seconds to wait before the next start; None: give up."""
        if now - self._started >= STEADY:
            self._in_a_row = 0
        self._in_a_row += 1
        if self._in_a_row > MOST:
            return None
        if self._in_a_row == 1:
            return 0.0
        return min(FIRST_PAUSE * (1 << (self._in_a_row - 2)), LONGEST_PAUSE)
