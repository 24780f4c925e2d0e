"""Limits the memory and the number of the request messages that arrive over gRPC.

Promises
- The bytes of every message count toward `SHOAL_MAX_UPLOAD_MEMORY` as they arrive, as uploads over
  HTTP do, with the same rules for slow ones (`budget`).
- At most `most` messages are arriving at the same time. Further ones take the place of the message
  that has made no progress for the longest time, so idle and slow streams keep no other waiting.

gRPC hands out complete messages only, so the `relay` counts the bytes that have arrived.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from batching import QueueFull
from service.budget import Budget, Share


class Stream:
    """One RPC, from its headers to the end of its answer."""

    def __init__(
        self,
        number: int,
        client: str,
        share: Share,
        progress: Callable[[Stream], None] = lambda stream: None,
    ) -> None:
        """
        Args:
            number: Identifies the stream within the process.
            client: Address of the client.
            share: Counts its bytes toward the memory for uploads.
            progress: Called when its handler has the message, and when the handler has ended.
        """
        self.number = number
        self.client = client
        self.share = share
        """Counts the bytes that have arrived until the handler has the message."""
        self.fault: Exception | None = None
        """Why the message is not received any further."""
        self.taken = False
        """Whether the handler has the message."""
        self.answered = False
        """Whether the handler has ended."""
        self._progress = progress

    def fail(self, fault: Exception) -> None:
        """Make the handler raise `fault`, now or when it waits for the message."""
        self.fault = self.fault or fault
        self.share.end(fault)

    def take(self) -> None:
        """Called when the handler has the message, whose bytes it counts from now on."""
        self.share.release()
        self.taken = True
        self._progress(self)

    def answer(self) -> None:
        """Called when the handler has ended."""
        self.answered = True
        self._progress(self)


class Streams:
    """All streams of the process."""

    def __init__(self, budget: Budget, most: int) -> None:
        """`budget`: the memory for uploads; `most`: maximum number of arriving messages."""
        self._budget = budget
        self._most = most
        self._open: dict[int, Stream] = {}
        self._arriving = OrderedDict[Stream, None]()  # longest without progress first
        self._last = 0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._open.values())

    def open(self, client: str, progress: Callable[[Stream], None]) -> Stream:
        """A new stream. Too many arriving messages end the one without progress for the longest."""
        if len(self._arriving) >= self._most:
            stalled, _ = self._arriving.popitem(last=False)
            stalled.fail(QueueFull("too many messages are arriving", retry_after=1))
        self._last += 1
        stream = Stream(self._last, client, self._budget.holding(), progress)
        self._open[stream.number] = stream
        self._arriving[stream] = None
        return stream

    def find(self, number: Any) -> Stream | None:
        """The stream with this number; None: its client has disconnected."""
        return self._open.get(int(number))

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
        self._open.pop(stream.number, None)
        stream.share.release()
