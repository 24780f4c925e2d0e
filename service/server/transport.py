"""Transports between uvloop and a connection, with bounds on what is read and written at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

READ_SECONDS = 30.0
"""Seconds in which a client must read its answers after their buffer is full, or after the
connection is closed."""
READ_BYTES = 64 * 1024
"""Maximum number of bytes that are read at once."""
GATHERED_BYTES = 64 * 1024
"""Maximum number of bytes that are gathered before they are written."""


class Incoming(asyncio.BufferedProtocol):
    """Passes data to a connection, at most `READ_BYTES` at a time. uvloop would pass 250 KiB."""

    _buffer = memoryview(bytearray(READ_BYTES))  # shared by all connections: used within one turn

    def __init__(self, connection: asyncio.Protocol) -> None:
        """`connection`: receives the events and the data."""
        self.connection_made = connection.connection_made  # type: ignore[method-assign]
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]
        self._received = connection.data_received

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received(bytes(self._buffer[:nbytes]))


class Outgoing(asyncio.Transport):
    """A transport that writes once per turn of the event loop, since every write is a system call.
    It gathers at most `GATHERED_BYTES`. `flush` writes immediately."""

    def __init__(
        self, transport: asyncio.Transport, sent: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            transport: Where the data is written.
            sent: Called when part of an answer was sent before the answer is complete.
        """
        super().__init__()
        self._transport = transport
        self._sent = sent
        self._loop = asyncio.get_running_loop()
        self._gathered: list[bytes | bytearray | memoryview] = []
        self._bytes = 0
        self._ended = False
        self._closed = Deadline(self._loop, transport.abort)
        # The other methods of a transport that uvicorn calls.
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._gathered:
            self._loop.call_soon(self._send)
        self._gathered.append(data)
        self._bytes += len(data)
        if self._bytes > GATHERED_BYTES:  # flow control must notice a slow client
            self._send()

    def _send(self) -> None:
        if self._gathered:
            self.flush()
            self._sent()

    def flush(self) -> None:
        """Write the gathered data."""
        if self._gathered and not (self._ended or self._transport.is_closing()):
            self._transport.writelines(self._gathered)
        self._gathered.clear()
        self._bytes = 0

    def close(self) -> None:
        """Close after all data was sent. Abort after `READ_SECONDS`."""
        self.flush()
        if not self._transport.is_closing():
            self._transport.close()
            self._closed.start(READ_SECONDS)

    def write_eof(self) -> None:
        """Tell the client that no data follows. Data that is written afterwards is dropped."""
        self.flush()
        self._ended = True
        self._transport.write_eof()

    def abort(self) -> None:
        self._transport.abort()

    def lost(self) -> None:
        """Release the connection, which has ended."""
        self._closed.stop()
        self._sent = lambda: None  # breaks the cycle of references with the connection


class Deadline:
    """A timer that calls a function unless it is stopped in time."""

    __slots__ = ("_loop", "_missed", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, missed: Callable[[], None]) -> None:
        """`missed`: called in `loop` when the time is over."""
        self._loop, self._missed = loop, missed
        self._timer: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        return self._timer is not None

    def start(self, seconds: float) -> None:
        """Start or restart the timer: `missed` is called in `seconds`."""
        self.stop()
        self._timer = self._loop.call_later(seconds, self._missed)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
