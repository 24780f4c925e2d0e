"""Keeps track of the open streams of one connection.

Guarantees
- A connection has at most `OPEN_STREAMS` streams.
- A stream without a handler ends within `READ_SECONDS`, with its connection: either gRPC's server
  has not begun to handle it, or the client does not read the response.
- A connection is busy while gRPC's server handles one of its complete messages. Connections that
  are not busy can be closed for new ones.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from service.grpc.read_buffers import ReadBuffers
from service.grpc.streams import Stream, Streams
from service.grpc.timers import Timers
from service.server.transport import READ_SECONDS

OPEN_STREAMS = 256
"""Maximum number of open streams of a connection. gRPC's server allows clients 128, and refuses
more as soon as a client has acknowledged that."""


class Connection(Protocol):
    """The connection that the streams belong to."""

    def abort(self) -> None:
        """Close the connection immediately."""

    def disconnect(self, reason: str) -> None:
        """Close the connection and send the reason to the client."""

    def set_busy(self, busy: bool) -> None:
        """Called when a message begins to be handled, and when none is handled any more."""


class ConnectionStreams:
    """The open streams of one connection, by their numbers."""

    def __init__(
        self, connection: Connection, client: str, streams: Streams, timers: Timers
    ) -> None:
        """
        Args:
            connection: The connection.
            client: Address of its client.
            streams: The streams of all connections.
            timers: The timers of the connection.
        """
        self._connection = connection
        self._client = client
        self._all_streams = streams
        self._timers = timers
        self._open: dict[int, Stream] = {}
        self._buffers = ReadBuffers()
        self._handled = 0
        """Number of complete messages that are being handled."""
        self.last = 0
        """Highest number of a stream so far."""

    def get(self, number: int) -> Stream | None:
        """The open stream with that number."""
        return self._open.get(number)

    @property
    def is_full(self) -> bool:
        """Whether no further stream may be opened."""
        return len(self._open) >= OPEN_STREAMS

    def open(self, number: int) -> Stream:
        """Open a stream. This may cancel another stream, as `Streams.open` describes."""
        self.last = number
        self._timers.start(number, READ_SECONDS, self._connection.abort)
        progress = partial(self._progress, number)
        stream = self._all_streams.open(self._client, progress, self._expel)
        self._open[number] = stream
        return stream

    def receive(self, stream: Stream | None, size: int) -> None:
        """Count `size` bytes of the stream's message. None: they belong to no message that is
        kept."""
        if stream is not None:
            self._all_streams.receive(stream, size)
        self._buffers.add(size, stream)

    def complete(self, stream: Stream) -> None:
        """Called when the stream's message is complete."""
        self._all_streams.complete(stream)

    def close(self, number: int) -> None:
        """Close a stream. No effect if it is not open."""
        self._timers.cancel(number)
        stream = self._open.pop(number, None)
        if stream is None:
            return
        self._all_streams.close(stream)
        self._buffers.remove(stream)
        if stream.taken and not stream.answered:
            self._end_handling()

    def close_all(self) -> None:
        for number in list(self._open):
            self.close(number)

    def _progress(self, number: int, stream: Stream) -> None:
        """Called when the handler of the stream begins, has the message, and has ended."""
        if number not in self._open:
            return
        if stream.answered:
            if stream.taken:
                self._end_handling()
            self._timers.start(number, READ_SECONDS, self._connection.abort)
        elif stream.taken:
            self._all_streams.complete(stream)
            self._buffers.remove(stream)
            self._handled += 1
            self._connection.set_busy(True)
        else:
            self._timers.cancel(number)

    def _end_handling(self) -> None:
        self._handled -= 1
        if not self._handled:
            self._connection.set_busy(False)

    def _expel(self) -> None:
        self._connection.disconnect("too many calls: an older response was not read")
        self.close_all()
