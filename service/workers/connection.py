"""One end of the socket between a front end and the engine's process.

What is sent within a turn of the event loop leaves in one write, so that the cost of a system call
is shared by all who are under way.
"""

from __future__ import annotations

import asyncio

from batching import on_error
from service.telemetry.logs import log
from service.workers.frames import BadFrame, Frame, FrameReader

HIGH_WATER = 4 * 2**20
"""Bytes that may wait for the other end to read before `crowded` says so."""


class Link(asyncio.Protocol):
    """Subclasses say what a frame means (`received`) and what the end of the link does (`lost`)."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.crowded = False
        """The other end does not keep up with reading."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost()

    def pause_writing(self) -> None:
        self.crowded = True

    def resume_writing(self) -> None:
        self.crowded = False

    def data_received(self, data: bytes) -> None:
        with on_error(self._fail):
            for frame in self._reader.feed(data):
                self.received(frame)

    def send(self, frame: bytes) -> None:
        """Forgotten where the link has ended: `lost` has said so."""
        if not self._out:
            self._loop.call_soon(self._write)
        self._out.append(frame)

    def close(self) -> None:
        """At once, whatever is still to be written."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self) -> None:
        out, self._out = self._out, []
        with on_error(self._fail):
            if self._transport is not None:
                self._transport.write(b"".join(out))

    def _fail(self, error: Exception) -> None:
        """Close the link: `lost` completes the requests of all frames that were not delivered."""
        unforeseen = None if isinstance(error, BadFrame) else error
        self.close()
        log.error("the link between two processes is broken: %s", error, exc_info=unforeseen)

    def received(self, frame: Frame) -> None:
        """Raises BadFrame."""
        raise NotImplementedError

    def lost(self) -> None:
        raise NotImplementedError
