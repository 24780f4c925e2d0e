"""Counts the memory that gRPC's server keeps for the incomplete messages of one connection.

gRPC's server reads a connection into buffers of `BUFFER_BYTES`, and keeps a buffer as long as one
message in it is incomplete. So a few bytes of such a message keep everything else in the buffer:
messages that were answered long ago, headers, and all other frames. These bytes count toward the
upload memory, too: when a message leaves the buffers, the bytes that it leaves behind count for
another one in the same buffer.

The true buffers begin elsewhere and end elsewhere, so they take at most twice what is counted here.
"""

from __future__ import annotations

from service.grpc.streams import Stream

BUFFER_BYTES = 64 * 1024
"""Size of gRPC's buffers. It is not documented. Some are smaller."""

_Buffer = dict[Stream, int]
"""Number of bytes in a buffer for which each stream is counted."""


class ReadBuffers:
    """The buffers that gRPC's server has filled from one connection."""

    def __init__(self) -> None:
        self._last: _Buffer = {}
        """The buffer that is being filled."""
        self._room = BUFFER_BYTES
        """Number of bytes that it has left."""
        self._left_behind = 0
        """Bytes in it for which no stream is counted."""
        self._buffers: dict[Stream, list[_Buffer]] = {}
        """The buffers in which each stream has bytes."""

    def add(self, size: int, stream: Stream | None) -> None:
        """Add bytes of a message, which its lease counts already. None: the bytes belong to no
        message that is kept. They are heads or other frames, or their stream is closed."""
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
        """Called when gRPC's server does not keep the message any longer, and its lease is
        released."""
        for buffer in self._buffers.pop(stream, ()):
            self._leave_behind(buffer, buffer.pop(stream))

    def _leave_behind(self, buffer: _Buffer, size: int) -> None:
        """Count `size` bytes of `buffer` for another stream that keeps it."""
        if buffer is self._last:
            size += self._left_behind
            self._left_behind = 0 if buffer else size
        heir = next(iter(buffer), None)
        if heir is not None:
            buffer[heir] += size
            heir.keep(size)
