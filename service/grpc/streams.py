"""Limits the number of arriving gRPC messages and the memory they take.

Guarantees
- The bytes of every message count toward SHOAL_MAX_UPLOAD_MEMORY as they arrive. Slow messages are
  treated like slow uploads over HTTP (`upload.body`).
- At most `max_arriving` messages arrive at the same time. A further message cancels one of the
  client network with the most arriving messages: the one without progress for the longest time. So
  idle and slow streams do not delay others, however often a client opens them.
- Progress is `PROGRESS_BYTES` of a message, as for HTTP connections. Fewer bytes are no progress.
- At most `IDLE` streams have no handler: it has not begun, or it has ended and the client has not
  received the response. Beyond that, the connection with the oldest such stream is closed.
- A handler finds its stream by a name that no client can know, and no other handler finds it later.

gRPC hands out complete messages only, so the `relay` counts the bytes that have arrived.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import count

from service.errors import BodyTooLarge, TooManyMessages, UploadMemoryFull
from service.rate_limit import network
from service.server.connection_limit import PROGRESS_BYTES
from service.upload.body import Lease, UploadMemory

IDLE = 2048
"""Maximum number of streams without a handler. A stream takes 10 to 20 KiB, most of it gRPC's."""


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
            lease: Counts the stream's bytes toward the upload memory.
            on_progress: Called when the handler begins, has the message, and has ended.
            expel: Closes the connection and all its streams.
        """
        self.name = secrets.token_hex(16)
        """Identifies the stream. Random, so that a client cannot name the stream of another."""
        self.client = client
        self.network = network(client)
        """Identifies the client among others."""
        self.lease = lease
        """Counts the bytes that have arrived, until the handler has the message."""
        self.received = 0
        """Bytes of the message that have arrived."""
        self.progress_number = 0
        """Position of the stream's last progress in the order of all progress."""
        self.fault: Exception | None = None
        """The reason why the message is not received any further."""
        self.claimed = False
        """Whether the handler has begun."""
        self.taken = False
        """Whether the handler has the message."""
        self.answered = False
        """Whether the handler has ended."""
        self.complete = False
        """Whether no more bytes of a message are expected."""
        self._on_progress = on_progress
        self.expel = expel

    def fail(self, fault: Exception) -> None:
        """Make the handler raise `fault`, now or when it waits for the message."""
        self.fault = self.fault or fault
        self.lease.reject(fault)

    def keep(self, size: int) -> None:
        """Count `size` bytes of other messages, which gRPC's server keeps because of this one."""
        try:
            self.lease.keep(size)
        except UploadMemoryFull as error:
            self.fail(error)

    def take(self) -> None:
        """Called when the handler has the message. From now on, the handler counts its bytes."""
        self.lease.release()
        self.taken = True
        self._on_progress(self)

    def report_progress(self) -> None:
        """Tell the connection that the handler has begun or ended."""
        self._on_progress(self)


class Streams:
    """The streams of all connections of the process."""

    def __init__(self, memory: UploadMemory, max_arriving: int) -> None:
        """
        Args:
            memory: The upload memory, which uploads over HTTP share.
            max_arriving: Maximum number of messages that arrive at the same time.
        """
        self._memory = memory
        self._max_arriving = max_arriving
        self._open: dict[str, Stream] = {}
        # By client network. In each, the stream without progress for the longest time is first.
        self._arriving: dict[str, OrderedDict[Stream, None]] = {}
        self._arriving_count = 0
        self._progress_numbers = count()
        self._idle = OrderedDict[Stream, None]()  # the longest without a handler first

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._open.values())

    def open(
        self, client: str, on_progress: Callable[[Stream], None], expel: Callable[[], None]
    ) -> Stream:
        """Create a stream, which may cancel another one or close a connection (see above).

        The arguments are those of `Stream`.
        """
        if self._arriving_count >= self._max_arriving:
            stalled = self._stalled()
            self.complete(stalled)
            stalled.fail(TooManyMessages())
        stream = Stream(client, self._memory.lease(self._memory.max_bytes), on_progress, expel)
        self._open[stream.name] = stream
        self._arriving.setdefault(stream.network, OrderedDict())[stream] = None
        self._arriving_count += 1
        stream.progress_number = next(self._progress_numbers)
        self._add_idle(stream)
        return stream

    def _stalled(self) -> Stream:
        """The stream to cancel. Among networks with the same number of streams, it is the one
        without progress for the longest time."""
        oldest = [(len(streams), next(iter(streams))) for streams in self._arriving.values()]
        return max(oldest, key=lambda item: (item[0], -item[1].progress_number))[1]

    def claim(self, name: str) -> Stream | None:
        """The stream of a handler that begins.

        None: the client has disconnected, has invented the name, or has hidden the real name in
        another header.
        """
        stream = self._open.get(name)
        if stream is None or stream.claimed:
            return None
        stream.claimed = True
        self._idle.pop(stream, None)
        stream.report_progress()
        return stream

    def answer(self, stream: Stream) -> None:
        """Called when the handler has ended."""
        stream.answered = True
        self.complete(stream)
        if stream.name in self._open:
            self._add_idle(stream)
        stream.report_progress()

    def _add_idle(self, stream: Stream) -> None:
        self._idle[stream] = None
        if len(self._idle) > IDLE:
            next(iter(self._idle)).expel()

    def receive(self, stream: Stream, size: int) -> None:
        """Count `size` bytes of the message that have arrived."""
        before, stream.received = stream.received, stream.received + size
        if before // PROGRESS_BYTES < stream.received // PROGRESS_BYTES:
            arriving = self._arriving.get(stream.network, OrderedDict())
            if stream in arriving:
                arriving.move_to_end(stream)
                stream.progress_number = next(self._progress_numbers)
        try:
            stream.lease.add(size)
        except (BodyTooLarge, UploadMemoryFull) as error:
            stream.fail(error)

    def complete(self, stream: Stream) -> None:
        """Called when the message is complete, or is not received any further."""
        stream.complete = True
        arriving = self._arriving.get(stream.network, OrderedDict())
        if stream in arriving:
            del arriving[stream]
            self._arriving_count -= 1
            if not arriving:
                del self._arriving[stream.network]

    def close(self, stream: Stream) -> None:
        """Forget the stream: it has been answered, or the client or gRPC's server has reset it."""
        self.complete(stream)
        self._idle.pop(stream, None)
        self._open.pop(stream.name, None)
        stream.lease.release()
