"""Orders streams by their last progress, separately for each client network."""

from __future__ import annotations

from collections import OrderedDict
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.grpc.streams import Stream


class NetworkQueues:
    """Streams by client network. In each network, the earliest last progress comes first."""

    def __init__(self) -> None:
        self._queues: dict[str, OrderedDict[Stream, int]] = {}
        """Maps each network to its streams and the numbers of their last progress. Later progress
        of any stream has a higher number."""
        self._numbers = count()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __contains__(self, stream: Stream) -> bool:
        return stream in self._queues.get(stream.network, ())

    def add(self, stream: Stream) -> None:
        """Add a stream that makes progress now, or move it to the end of its network."""
        queue = self._queues.setdefault(stream.network, OrderedDict())
        self._length += stream not in queue
        queue[stream] = next(self._numbers)
        queue.move_to_end(stream)

    def remove(self, stream: Stream) -> None:
        """Remove a stream. No effect if the stream was not added."""
        if stream not in self:
            return
        queue = self._queues[stream.network]
        del queue[stream]
        self._length -= 1
        if not queue:
            del self._queues[stream.network]

    def first_of_largest(self) -> Stream:
        """Return the first stream of the network with the most streams.

        The first stream has been without progress for the longest time. If several networks have
        the most streams, their first streams are compared. There must be at least one stream.
        """
        firsts = [(len(queue), *next(iter(queue.items()))) for queue in self._queues.values()]
        return max(firsts, key=lambda first: (first[0], -first[2]))[1]
