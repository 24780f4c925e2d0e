"""One end of the socket between a front end (a process that serves HTTP) and the engine process.

All frames of one turn of the event loop are sent with one system call, which saves time when many
requests are in flight.
"""

from __future__ import annotations

import asyncio

from batching import on_error
from service.telemetry.logs import log
from service.workers.frames import BadFrame, Frame, FrameReader

HIGH_WATER = 4 * 2**20
"""A connection with more than this number of unsent bytes is congested."""


class FrameConnection(asyncio.Protocol):
    """Sends and receives frames. Subclasses implement `frame_received` and `disconnected`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.congested = False
        """Whether more than `HIGH_WATER` bytes are unsent: the other process reads too slowly."""

    @property
    def unsent_bytes(self) -> int:
        """Number of bytes that the other end has not accepted yet.

        Frames that were sent in this turn of the event loop are not counted.
        """
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
        """Send a frame at the end of this turn of the event loop.

        If the connection has ended, the frame is dropped.
        """
        if not self._unsent:
            self._loop.call_soon(self._write)
        self._unsent.append(frame)

    def close(self) -> None:
        """Close the connection immediately and drop unsent frames."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self) -> None:
        unsent, self._unsent = self._unsent, []
        with on_error(self._fail):
            if self._transport is not None:
                self._transport.write(b"".join(unsent))

    def _fail(self, error: Exception) -> None:
        """Close the connection. `disconnected` then ends the requests in progress."""
        unexpected = None if isinstance(error, BadFrame) else error
        self.close()
        log.error("the connection between two processes failed: %s", error, exc_info=unexpected)

    def frame_received(self, frame: Frame) -> None:
        """Handle a received frame. Raises BadFrame if this process does not accept the frame."""
        raise NotImplementedError

    def disconnected(self) -> None:
        """Handle the end of the connection. Called once."""
        raise NotImplementedError
