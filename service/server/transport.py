"""Transports between uvloop and a connection, with limits on the bytes per read and per write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

READ_SECONDS = 30.0
"""Timeout in seconds for a client that does not read. The time starts when the response buffer is
full, or when the server begins to close the connection."""
READ_BYTES = 64 * 1024
"""Maximum number of bytes per read."""
GATHERED_BYTES = 64 * 1024
"""If more than this number of bytes is buffered, the buffer is written immediately."""


class Incoming(asyncio.BufferedProtocol):
    """Passes received data to a connection, at most `READ_BYTES` at a time.

    Without this class, uvloop would pass up to 250 KiB at a time.
    """

    _buffer = memoryview(bytearray(READ_BYTES))
    """Read buffer, shared by all connections. `buffer_updated` copies the bytes before the next
    read."""

    def __init__(self, connection: asyncio.Protocol) -> None:
        """
        Args:
            connection: Protocol that receives the events and the data.
        """
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
    """A transport that buffers data, and writes once per turn of the event loop.

    The buffer saves system calls. If more than `GATHERED_BYTES` are buffered, they are written
    immediately. `flush` also writes the buffer immediately.
    """

    def __init__(
        self, transport: asyncio.Transport, sent: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            transport: Transport of uvloop that the data is written to.
            sent: Function that is called after each write of a part of a response. Default: a
                function that does nothing.
        """
        super().__init__()
        self._transport = transport
        self._sent = sent
        self._loop = asyncio.get_running_loop()
        self._gathered: list[bytes | bytearray | memoryview] = []
        self._bytes = 0
        self._ended = False
        self._closed = Deadline(self._loop, transport.abort)
        # Uvicorn calls these methods, too.
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
        """Write the buffered data immediately."""
        if self._gathered and not (self._ended or self._transport.is_closing()):
            self._transport.writelines(self._gathered)
        self._gathered.clear()
        self._bytes = 0

    def close(self) -> None:
        """Close the connection after all data was sent, or abort it after `READ_SECONDS`."""
        self.flush()
        if not self._transport.is_closing():
            self._transport.close()
            self._closed.start(READ_SECONDS)

    def write_eof(self) -> None:
        """Tell the client that no more data follows. Later writes are dropped."""
        self.flush()
        self._ended = True
        self._transport.write_eof()

    def abort(self) -> None:
        self._transport.abort()

    def lost(self) -> None:
        """Release the references to a connection that has ended."""
        self._closed.stop()
        self._sent = lambda: None  # breaks the reference cycle with the connection


class Deadline:
    """A timer that calls a function after a number of seconds, unless `stop` is called before."""

    __slots__ = ("_loop", "_missed", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, missed: Callable[[], None]) -> None:
        """
        Args:
            loop: Event loop of the timer.
            missed: Function that the loop calls when the timer expires.
        """
        self._loop, self._missed = loop, missed
        self._timer: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        return self._timer is not None

    def start(self, seconds: float) -> None:
        """Start or restart the timer. The loop calls `missed` after `seconds`."""
        self.stop()
        self._timer = self._loop.call_later(seconds, self._missed)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
