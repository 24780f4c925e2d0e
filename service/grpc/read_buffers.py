"""Counts the memory that gRPC's server keeps for the incomplete messages of one connection.

gRPC's server reads the data of a connection into buffers of `BUFFER_BYTES`. The server frees a
buffer when every message with bytes in the buffer has been passed to its handler or dropped.
Therefore, an incomplete message with a few bytes in a buffer keeps the whole buffer in memory,
including headers, control frames and messages of ended calls. All these bytes count toward the
upload memory. When a message has been passed to its handler, the bytes that were counted for it are
counted for another message with bytes in the same buffer.

The real buffers of gRPC's server may begin and end at other positions than this module assumes.
The real buffers take at most twice the memory that this module counts.
"""

from __future__ import annotations

from service.grpc.streams import Stream

BUFFER_BYTES = 64 * 1024
"""Maximum size in bytes of a read buffer of gRPC's server. gRPC does not document this size."""

_Buffer = dict[Stream, int]
"""A buffer, as a map from each stream to the number of bytes that are counted for the stream."""


class ReadBuffers:
    """The buffers that gRPC's server has filled with data of one connection."""

    def __init__(self) -> None:
        self._last: _Buffer = {}
        """The buffer that is being filled."""
        self._room = BUFFER_BYTES
        """Number of unused bytes in the buffer `_last`."""
        self._left_behind = 0
        """Number of bytes in the buffer `_last` that are not counted for any stream."""
        self._buffers: dict[Stream, list[_Buffer]] = {}
        """Maps each stream to the buffers that contain bytes of its message."""

    def add(self, size: int, stream: Stream | None) -> None:
        """Add `size` bytes that were relayed to gRPC's server.

        `stream`: the stream with the message that contains the bytes. The stream's lease, which
        counts the memory of the message, already counts these bytes. None: the bytes belong to no
        message, or to a closed stream.
        """
        while size:
            part = min(size, self._room)
            if stream is None:
                self._leave_behind(self._last, part)
            else:
                if stream not in self._last:
                    self._buffers.setdefault(stream, []).append(self._last)
                self._last[stream] = self._last.get(stream, 0) + part
                if self._left_behind:
                    self._leave_behind(self._last, 0)
            size -= part
            self._room -= part
            if not self._room:
                self._last, self._room, self._left_behind = {}, BUFFER_BYTES, 0

    def remove(self, stream: Stream) -> None:
        """Remove a message that gRPC's server has passed to its handler or dropped.

        The lease of `stream`, which carries the message, must have been released before.
        """
        for buffer in self._buffers.pop(stream, ()):
            self._leave_behind(buffer, buffer.pop(stream))

    def _leave_behind(self, buffer: _Buffer, size: int) -> None:
        """Count `size` bytes of `buffer` for another stream with bytes in the buffer. If there is
        no such stream, gRPC's server has freed the buffer or is still filling it.
        """
        if buffer is self._last:
            size += self._left_behind
            self._left_behind = 0 if buffer else size
        heir = next(iter(buffer), None)
        if heir is not None:
            buffer[heir] += size
            heir.keep(size)
