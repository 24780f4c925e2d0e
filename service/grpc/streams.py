"""Limits the number of arriving gRPC messages, and their memory.

A stream carries one RPC. The handler of a stream is the coroutine that returns the response. gRPC's
server passes only complete messages to handlers, so the `relay` counts the bytes that have arrived.

Guarantees
- The bytes of every message count toward SHOAL_MAX_UPLOAD_MEMORY as they arrive. Slow messages are
  treated like slow uploads over HTTP (`upload.body`).
- At most `max_arriving` messages arrive at the same time. At the limit, a new message cancels
  another message, which belongs to the client network (an address prefix that counts as one client)
  with the most arriving messages. Of these messages, the message without progress for the longest
  time is canceled. Therefore, a client with many idle or slow streams does not delay other clients.
- A message makes progress whenever `PROGRESS_BYTES` more bytes have arrived, as on HTTP
  connections.
- The calls whose handlers have not begun are limited (`start_limit`).
- At most `UNREAD` streams have a response that the client has not received. At the limit, the
  oldest such stream of the client network with the most such streams is selected, and its
  connection is closed. Responses younger than `UNREAD_SECONDS` are considered only if there are no
  older ones: a client that reads its responses does not lose its connection.
- A handler finds its stream by a random name, which clients cannot know. A second handler cannot
  find the same stream.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

from service.errors import BodyTooLarge, TooManyMessages, UploadMemoryFull
from service.grpc.network_queues import NetworkQueues
from service.grpc.start_limit import StartLimit
from service.rate_limit import network
from service.server.connection_limit import PROGRESS_BYTES
from service.upload.body import Lease, UploadMemory

UNREAD = 2048
"""Maximum number of streams whose response the client has not received. Each stream takes 10 to
50 KiB, mostly in gRPC."""
UNREAD_SECONDS = 1.0
"""Number of seconds in which a client usually receives a response."""


class Stream:
    """One RPC, from its headers to the end of its response."""

    def __init__(
        self,
        client: str,
        lease: Lease,
        on_progress: Callable[[Stream], None] = lambda stream: None,
        expel: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            client: Address of the client.
            lease: Counts the bytes of the message toward the upload memory.
            on_progress: Called with the stream when its handler begins, receives the message, and
                ends.
            expel: Function that closes the connection of the stream.
        """
        self.name = secrets.token_hex(16)
        """Name of the stream. The name is random, so that a client cannot guess the names of
        streams of other clients."""
        self.client = client
        """Address of the client."""
        self.network = network(client)
        """Network of the client. All connections from this network count as one client."""
        self.lease = lease
        """Counts the memory of the bytes that have arrived, until the handler receives the
        message."""
        self.received = 0
        """Number of bytes of the message that have arrived."""
        self.fault: Exception | None = None
        """The reason why receiving the message has failed. None: no error has occurred."""
        self.claimed = False
        """Whether the handler has begun."""
        self.taken = False
        """Whether the handler has received the message."""
        self.answered = False
        """Whether the handler has ended."""
        self.complete = False
        """Whether the message is complete, or its reception has stopped."""
        self._on_progress = on_progress
        self.expel = expel
        """Function that closes the connection of the stream."""

    def fail(self, fault: Exception) -> None:
        """Make the handler raise `fault`, immediately or when the handler begins to await the
        message."""
        self.fault = self.fault or fault
        if self.answered or self.taken:  # no handler waits for the message
            self.expel()
        self.lease.reject(fault)

    def keep(self, size: int) -> None:
        """Count `size` bytes of data that share a buffer with this message.

        gRPC's server cannot free the data before it frees the message.
        """
        try:
            self.lease.keep(size)
        except UploadMemoryFull as error:
            self.fail(error)

    def take(self) -> None:
        """Record that the handler has received the message. From now on, the handler counts the
        bytes."""
        self.lease.release()
        self.taken = True
        self._on_progress(self)

    def report_progress(self) -> None:
        """Notify the connection that the handler has begun or ended."""
        self._on_progress(self)


class Streams:
    """The streams of all connections of the process."""

    def __init__(self, memory: UploadMemory, max_arriving: int) -> None:
        """
        Args:
            memory: The upload memory, which gRPC messages share with uploads over HTTP.
            max_arriving: Maximum number of messages that arrive at the same time.
        """
        self._memory = memory
        self._max_arriving = max_arriving
        self._open: dict[str, Stream] = {}
        self._arriving = NetworkQueues()
        """Streams whose messages are arriving."""
        self._answered = NetworkQueues()
        """Streams whose handler has ended within the last `UNREAD_SECONDS`."""
        self._unread = NetworkQueues()
        """Streams whose handler has ended earlier."""
        self.start_limit = StartLimit()
        """Limits the calls whose handlers have not begun."""

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._open.values())

    def open(
        self, client: str, on_progress: Callable[[Stream], None], expel: Callable[[], None]
    ) -> Stream:
        """Create a stream.

        If there are too many arriving messages, another message is canceled. The arguments are the
        same as for `Stream`.
        """
        if len(self._arriving) >= self._max_arriving:
            stalled = self._arriving.first_of_largest()
            self.complete(stalled)
            stalled.fail(TooManyMessages())
        stream = Stream(client, self._memory.lease(self._memory.max_bytes), on_progress, expel)
        self._open[stream.name] = stream
        self._arriving.add(stream)
        return stream

    def claim(self, name: str) -> Stream | None:
        """Return the stream of a handler that begins.

        The result is None if the stream is closed or has a handler already, or if the client has
        sent a wrong name.
        """
        self.start_limit.remove(name)
        stream = self._open.get(name)
        if stream is None or stream.claimed:
            return None
        stream.claimed = True
        stream.report_progress()
        return stream

    def answer(self, stream: Stream) -> None:
        """Record that the handler of the stream has ended.

        If there are too many streams with an unread response, a connection is closed.
        """
        stream.answered = True
        self.complete(stream)
        if stream.name in self._open:
            # The client has not received the response yet. Until then, bytes that the client sends
            # still count toward the upload memory, and the stream is treated like a slow message.
            stream.lease.begin(lambda error: stream.expel())
            self._memory.mark_slow(stream.lease)
            self._answered.add(stream)
            if len(self._answered) + len(self._unread) > UNREAD:
                (self._unread or self._answered).first_of_largest().expel()
        stream.report_progress()

    def mark_unread(self, stream: Stream) -> None:
        """Record that the client has not received the response within `UNREAD_SECONDS`."""
        self._answered.remove(stream)
        self._unread.add(stream)

    def receive(self, stream: Stream, size: int) -> None:
        """Count `size` bytes of the message that have arrived."""
        before, stream.received = stream.received, stream.received + size
        made_progress = before // PROGRESS_BYTES < stream.received // PROGRESS_BYTES
        if made_progress and stream in self._arriving:
            self._arriving.add(stream)
        try:
            stream.lease.add(size)
        except (BodyTooLarge, UploadMemoryFull) as error:
            stream.fail(error)

    def complete(self, stream: Stream) -> None:
        """Record that the message is complete, or its reception has stopped."""
        stream.complete = True
        self._arriving.remove(stream)

    def close(self, stream: Stream) -> None:
        """Remove the stream. Its RPC has ended, or the client or gRPC's server has reset the
        stream."""
        self.complete(stream)
        self._answered.remove(stream)
        self._unread.remove(stream)
        self._open.pop(stream.name, None)
        stream.lease.end()
        stream.lease.release()
