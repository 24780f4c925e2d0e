"""A transport without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


class Sent(asyncio.Transport):
    """Records what was written, in one item for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed, self.reading, self.ended = False, True, False
        self.closes = self.aborts = 0
        """Number of calls of `close` and `abort`."""

    def writelines(self, chunks: Iterable[Any]) -> None:
        self.sent.append(b"".join(chunks))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True
        self.closes += 1

    def abort(self) -> None:
        self.closed = True
        self.aborts += 1

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write_eof(self) -> None:
        self.ended = True
