"""One end of the socket between a front end and the engine process.

All frames that are sent within one turn of the event loop leave in one write: many requests share
the cost of a system call.
"""

from __future__ import annotations

import asyncio

from batching import on_error
from service.telemetry.logs import log
from service.workers.frames import BadFrame, Frame, FrameReader

HIGH_WATER = 4 * 2**20
"""Unsent bytes above which the other end counts as too slow."""


class FrameConnection(asyncio.Protocol):
    """Sends and receives frames. Subclasses implement `frame_received` and `disconnected`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.congested = False
        """Whether more than `HIGH_WATER` bytes are unsent: the other end reads too slowly."""

    @property
    def unsent_bytes(self) -> int:
        """Number of bytes that the other end has not accepted yet, without those of this turn."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.disconnected()

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False

    def data_received(self, data: bytes) -> None:
        with on_error(self._fail):
            for frame in self._reader.feed(data):
                self.frame_received(frame)

    def send(self, frame: bytes) -> None:
        """Send a frame at the end of this turn. After the connection has ended, it is dropped."""
        if not self._unsent:
            self._loop.call_soon(self._write)
        self._unsent.append(frame)

    def close(self) -> None:
        """Close immediately and drop unsent frames."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self) -> None:
        unsent, self._unsent = self._unsent, []
        with on_error(self._fail):
            if self._transport is not None:
                self._transport.write(b"".join(unsent))

    def _fail(self, error: Exception) -> None:
        """Close the connection: `disconnected` completes the requests whose frames were lost."""
        unexpected = None if isinstance(error, BadFrame) else error
        self.close()
        log.error("the connection between two processes failed: %s", error, exc_info=unexpected)

    def frame_received(self, frame: Frame) -> None:
        """Called for each frame. Raises BadFrame when the frame is invalid here."""
        raise NotImplementedError

    def disconnected(self) -> None:
        """Called once, when the connection has ended."""
        raise NotImplementedError
