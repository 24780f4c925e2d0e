"""Limits the memory and the number of the request messages that arrive over gRPC.

Promises
- The bytes of every message count toward `SHOAL_MAX_UPLOAD_MEMORY` as they arrive, as uploads over
  HTTP do, with the same rules for slow ones (`budget`).
- At most `most` messages are arriving at the same time. A further one takes the place of a message
  of the client network that has most of them: the one that has made no progress for the longest
  time. So idle and slow streams keep no other waiting, however often a client opens them.
- Progress is `PROGRESS_BYTES` of a message, as for `connections`. Fewer bytes are no progress.
- At most `IDLE` streams have no handler: it has not begun, or it has ended and the client has not
  received the answer. Beyond that, the connection of the oldest is closed.
- A handler finds its stream by a name that no client can know, and no other handler finds it after
  that.

gRPC hands out complete messages only, so the `relay` counts the bytes that have arrived.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import count

from batching import QueueFull
from service.errors import BodyTooLarge, UploadMemoryFull
from service.rate_limit import network
from service.server.connection_limit import PROGRESS_BYTES
from service.upload.body import Lease, UploadMemory

IDLE = 2048
"""Maximum number of streams without a handler. A stream takes 10 to 20 KiB, most of it gRPC's."""


class Stream:
    """One RPC, from its headers to the end of its answer."""

    def __init__(
        self,
        client: str,
        share: Lease,
        progress: Callable[[Stream], None] = lambda stream: None,
        expel: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            client: Address of the client.
            share: Counts its bytes toward the memory for uploads.
            progress: Called when its handler begins, has the message, and has ended.
            expel: Closes the connection, and all streams of it.
        """
        self.name = secrets.token_hex(16)
        """Identifies the stream. Random, so that a client cannot name the stream of another."""
        self.client = client
        self.network = network(client)
        """What tells the client apart from others."""
        self.share = share
        """Counts the bytes that have arrived until the handler has the message."""
        self.received = 0
        """Bytes of the message that have arrived."""
        self.progressed = 0
        """Position of its last progress among that of all streams."""
        self.fault: Exception | None = None
        """Why the message is not received any further."""
        self.claimed = False
        """Whether the handler has begun."""
        self.taken = False
        """Whether the handler has the message."""
        self.answered = False
        """Whether the handler has ended."""
        self._progress = progress
        self.expel = expel

    def fail(self, fault: Exception) -> None:
        """Make the handler raise `fault`, now or when it waits for the message."""
        self.fault = self.fault or fault
        self.share.reject(fault)

    def take(self) -> None:
        """Called when the handler has the message, whose bytes it counts from now on."""
        self.share.release()
        self.taken = True
        self._progress(self)

    def progress(self) -> None:
        self._progress(self)


class Streams:
    """All streams of the process."""

    def __init__(self, budget: UploadMemory, most: int) -> None:
        """`budget`: the memory for uploads; `most`: maximum number of arriving messages."""
        self._budget = budget
        self._most = most
        self._open: dict[str, Stream] = {}
        # By client network; of each, the stream that is longest without progress first.
        self._arriving: dict[str, OrderedDict[Stream, None]] = {}
        self._arriving_count = 0
        self._progresses = count()
        self._idle = OrderedDict[Stream, None]()  # longest without a handler first

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._open.values())

    def open(
        self, client: str, progress: Callable[[Stream], None], expel: Callable[[], None]
    ) -> Stream:
        """A new stream, which may end another (see above). The arguments are those of `Stream`."""
        if self._arriving_count >= self._most:
            stalled = self._stalled()
            self.complete(stalled)
            stalled.fail(QueueFull("too many messages are arriving", retry_after=1))
        stream = Stream(client, self._budget.lease(self._budget.max_bytes), progress, expel)
        self._open[stream.name] = stream
        self._arriving.setdefault(stream.network, OrderedDict())[stream] = None
        self._arriving_count += 1
        stream.progressed = next(self._progresses)
        self._add_idle(stream)
        return stream

    def _stalled(self) -> Stream:
        """The stream that makes room: of networks with the same number, the longest without
        progress."""
        first = [(len(streams), next(iter(streams))) for streams in self._arriving.values()]
        return max(first, key=lambda found: (found[0], -found[1].progressed))[1]

    def claim(self, name: str) -> Stream | None:
        """The stream of a handler that begins. None: its client has disconnected, or the client
        has made this name up, or has hidden the name in another header."""
        stream = self._open.get(name)
        if stream is None or stream.claimed:
            return None
        stream.claimed = True
        self._idle.pop(stream, None)
        stream.progress()
        return stream

    def answer(self, stream: Stream) -> None:
        """Called when the handler has ended."""
        stream.answered = True
        self.complete(stream)
        if stream.name in self._open:
            self._add_idle(stream)
        stream.progress()

    def _add_idle(self, stream: Stream) -> None:
        self._idle[stream] = None
        if len(self._idle) > IDLE:
            next(iter(self._idle)).expel()

    def receive(self, stream: Stream, size: int) -> None:
        """Count `size` bytes of its message that have arrived."""
        before, stream.received = stream.received, stream.received + size
        if before // PROGRESS_BYTES < stream.received // PROGRESS_BYTES:
            arriving = self._arriving.get(stream.network, OrderedDict())
            if stream in arriving:
                arriving.move_to_end(stream)
                stream.progressed = next(self._progresses)
        try:
            stream.share.add(size)
        except (BodyTooLarge, UploadMemoryFull) as full:
            stream.fail(full)

    def complete(self, stream: Stream) -> None:
        """Called when its message is complete."""
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
        stream.share.release()
