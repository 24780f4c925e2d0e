"""Limits the memory and the number of the request messages that arrive over gRPC.

Promises
- The bytes of every message count toward `SHOAL_MAX_UPLOAD_MEMORY` as they arrive, as uploads over
  HTTP do, with the same rules for slow ones (`budget`).
- At most `most` messages are arriving at the same time. Further ones take the place of the message
  that has made no progress for the longest time, so idle and slow streams keep no other waiting.
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

from batching import QueueFull
from service.budget import Budget, Share

IDLE = 2048
"""Maximum number of streams without a handler. A stream takes 10 to 20 KiB, most of it gRPC's."""


class Stream:
    """One RPC, from its headers to the end of its answer."""

    def __init__(
        self,
        client: str,
        share: Share,
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
        self.share = share
        """Counts the bytes that have arrived until the handler has the message."""
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
        self.share.end(fault)

    def take(self) -> None:
        """Called when the handler has the message, whose bytes it counts from now on."""
        self.share.release()
        self.taken = True
        self._progress(self)

    def progress(self) -> None:
        self._progress(self)


class Streams:
    """All streams of the process."""

    def __init__(self, budget: Budget, most: int) -> None:
        """`budget`: the memory for uploads; `most`: maximum number of arriving messages."""
        self._budget = budget
        self._most = most
        self._open: dict[str, Stream] = {}
        self._arriving = OrderedDict[Stream, None]()  # longest without progress first
        self._idle = OrderedDict[Stream, None]()  # longest without a handler first

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._open.values())

    def open(
        self, client: str, progress: Callable[[Stream], None], expel: Callable[[], None]
    ) -> Stream:
        """A new stream. Too many arriving messages end the one without progress for the longest.
        The arguments are those of `Stream`."""
        if len(self._arriving) >= self._most:
            stalled, _ = self._arriving.popitem(last=False)
            stalled.fail(QueueFull("too many messages are arriving", retry_after=1))
        stream = Stream(client, self._budget.holding(), progress, expel)
        self._open[stream.name] = stream
        self._arriving[stream] = None
        self._add_idle(stream)
        return stream

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

    def receive(self, stream: Stream, count: int) -> None:
        """Count `count` bytes of its message that have arrived."""
        if stream in self._arriving:
            self._arriving.move_to_end(stream)
        try:
            stream.share.add(count)
        except QueueFull as full:
            stream.fail(full)

    def complete(self, stream: Stream) -> None:
        """Called when its message is complete."""
        self._arriving.pop(stream, None)

    def close(self, stream: Stream) -> None:
        """Forget the stream: it has been answered, or the client or gRPC's server has reset it."""
        self.complete(stream)
        self._idle.pop(stream, None)
        self._open.pop(stream.name, None)
        stream.share.release()
