"""Keeps track of the open streams of one connection.

A stream carries one RPC. The handler of a stream is the coroutine that returns the response.

Guarantees
- A connection has at most `OPEN_STREAMS` open streams.
- The connection is closed if one of its streams has no handler for `READ_SECONDS`. A stream has no
  handler if gRPC's server has not started the handler, or if the client has not read the response
  after the handler has ended.
- The connection is busy while a handler is processing a complete message of one of its streams. If
  there are too many connections, only connections that are not busy may be closed.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from service.grpc.read_buffers import ReadBuffers
from service.grpc.streams import UNREAD_SECONDS, Stream, Streams
from service.grpc.timers import Timers
from service.rate_limit import network
from service.server.transport import READ_SECONDS

OPEN_STREAMS = 256
"""Maximum number of open streams of a connection. gRPC's own limit is 128, but applies only after
the client has acknowledged the server's settings."""


class Connection(Protocol):
    """The connection that the streams belong to. `relay.Relay` is one implementation."""

    def abort(self) -> None:
        """Close the connection immediately."""

    def disconnect(self, reason: str) -> None:
        """Send `reason` to the client, and close the connection."""

    def set_busy(self, busy: bool) -> None:
        """Record whether a handler is processing a complete message of the connection."""


class ConnectionStreams:
    """Maps the HTTP/2 stream number of each open stream of one connection to the stream."""

    def __init__(
        self, connection: Connection, client: str, streams: Streams, timers: Timers
    ) -> None:
        """
        Args:
            connection: The connection of the streams.
            client: Address of the client.
            streams: The streams of all connections.
            timers: The timers of the connection.
        """
        self._connection = connection
        self._client = client
        self._network = network(client)
        self._all_streams = streams
        self._timers = timers
        self._open: dict[int, Stream] = {}
        self._buffers = ReadBuffers()
        self._handled = 0
        """Number of complete messages of the connection that handlers are processing."""
        self.last = 0
        """Highest stream number that the client has used so far."""

    def get(self, number: int) -> Stream | None:
        """Return the open stream with this number, or None if no such stream is open."""
        return self._open.get(number)

    @property
    def is_full(self) -> bool:
        """Whether no further stream may be opened."""
        return len(self._open) >= OPEN_STREAMS

    @property
    def may_open(self) -> bool:
        """Whether another stream may be opened now. If not, the call must wait (`start_limit`)."""
        return self._all_streams.start_limit.allows(self._network)

    def open(self, number: int) -> Stream:
        """Open a stream. If too many messages are arriving, another message is canceled."""
        self.last = number
        self._timers.start(number, READ_SECONDS, self._connection.abort)
        progress = partial(self._progress, number)
        stream = self._all_streams.open(self._client, progress, self._expel)
        self._open[number] = stream
        self._all_streams.start_limit.add(stream.name, stream.network)
        return stream

    def receive(self, stream: Stream | None, size: int) -> None:
        """Count `size` bytes that were relayed to gRPC's server.

        `stream`: the stream with the message that contains the bytes. None: the bytes belong to no
        message, or to a closed stream.
        """
        if stream is not None:
            self._all_streams.receive(stream, size)
        self._buffers.add(size, stream)

    def complete(self, stream: Stream) -> None:
        """Record that the message of `stream` is complete."""
        self._all_streams.complete(stream)

    def close(self, number: int) -> None:
        """Close a stream. No effect if the stream is not open."""
        self._timers.cancel(number)
        stream = self._open.pop(number, None)
        if stream is None:
            return
        self._all_streams.start_limit.close(stream.name)
        self._all_streams.close(stream)
        self._buffers.remove(stream)
        if stream.taken and not stream.answered:
            self._end_handling()

    def end(self, number: int) -> None:
        """Close a stream that gRPC's server has ended. No effect if the stream is not open."""
        if stream := self._open.get(number):
            self._all_streams.start_limit.remove(stream.name)
        self.close(number)

    def close_all(self) -> None:
        """Close all streams of the connection."""
        for number in list(self._open):
            self.close(number)

    def _progress(self, number: int, stream: Stream) -> None:
        """Update the state of the connection after a step of the handler of `stream`.

        The steps of a handler are: it begins, receives the message, and ends.
        """
        if number not in self._open:
            return
        if stream.answered:
            if stream.taken:
                self._end_handling()
            unread = partial(self._mark_unread, number, stream)
            self._timers.start(number, UNREAD_SECONDS, unread)
        elif stream.taken:
            self._all_streams.complete(stream)
            self._buffers.remove(stream)
            self._handled += 1
            self._connection.set_busy(True)
        else:
            self._timers.cancel(number)

    def _mark_unread(self, number: int, stream: Stream) -> None:
        self._all_streams.mark_unread(stream)
        self._timers.start(number, READ_SECONDS - UNREAD_SECONDS, self._connection.abort)

    def _end_handling(self) -> None:
        self._handled -= 1
        if not self._handled:
            self._connection.set_busy(False)

    def _expel(self) -> None:
        self._connection.disconnect("too many calls, and the client did not read an older response")
        self.close_all()
