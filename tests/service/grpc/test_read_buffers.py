"""What is counted of the buffers that gRPC's server keeps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.errors import UploadMemoryFull
from service.grpc.read_buffers import BUFFER_BYTES, ReadBuffers
from service.grpc.streams import Stream
from service.upload.body import UploadMemory


class Messages:
    """The messages of one connection."""

    def __init__(self, max_bytes: int = 2**30) -> None:
        self.memory = UploadMemory(max_bytes)
        self.buffers = ReadBuffers()

    def begin(self) -> Stream:
        return Stream("192.0.2.1", self.memory.lease())

    def receive(self, stream: Stream, size: int) -> None:
        stream.lease.add(size)
        self.buffers.add(size, stream)

    def end(self, stream: Stream) -> None:
        stream.lease.release()
        self.buffers.remove(stream)


def test_buffers_count_for_the_message_that_keeps_them() -> None:
    """Small pieces of an incomplete message between complete ones count as the buffers they
    keep, until it ends."""
    messages = Messages()
    slow = messages.begin()
    for _ in range(10):
        messages.receive(slow, 256)
        other = messages.begin()
        messages.receive(other, BUFFER_BYTES - 256)
        messages.end(other)
    assert messages.memory.held == slow.lease.held == 10 * BUFFER_BYTES
    messages.end(slow)
    assert messages.memory.held == 0


def test_messages_alone_count_as_their_bytes() -> None:
    """A message that arrives without others between its pieces counts no more than its bytes."""
    messages = Messages()
    first, second = messages.begin(), messages.begin()
    for _ in range(100):
        messages.receive(first, 16_384)
    messages.receive(second, 1000)
    messages.end(first)
    assert messages.memory.held <= 1000 + BUFFER_BYTES
    messages.end(second)
    assert messages.memory.held == 0


def test_bytes_of_no_message_count_for_the_message_behind_them() -> None:
    """gRPC's server drops them, but a message in the same buffer keeps them."""
    messages = Messages()
    messages.buffers.add(1000, None)
    assert messages.memory.held == 0
    stream = messages.begin()
    messages.receive(stream, 10)
    messages.buffers.add(500, None)
    assert messages.memory.held == 1510


def test_message_that_keeps_much_memory_for_long_is_rejected() -> None:
    """Like a slow upload: such messages share half of the upload memory."""
    messages, rejected = Messages(8 * BUFFER_BYTES), list[Exception]()
    slow = messages.begin()
    slow.lease.begin(rejected.append)
    slow.lease.check()
    for count in range(6):
        assert bool(rejected) == (count > 4)
        messages.receive(slow, 256)
        other = messages.begin()
        messages.receive(other, BUFFER_BYTES - 256)
        messages.end(other)
    assert isinstance(rejected[0], UploadMemoryFull)


def test_kept_bytes_do_not_make_a_message_faster() -> None:
    """A message that arrives slowly is slow, however many bytes of others it keeps."""
    messages = Messages()
    slow = messages.begin()
    messages.receive(slow, 100)
    other = messages.begin()
    messages.receive(other, 10_000)
    messages.end(other)
    slow.lease.check()
    assert slow.lease.rate == 50


PIECES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50_000), st.booleans()), max_size=60)


@given(PIECES)
def test_buffers_count_all_bytes_of_buffers_with_incomplete_messages(
    pieces: list[tuple[int, int, bool]],
) -> None:
    """Whatever order the pieces have: as many bytes count as such buffers hold. Pieces with the
    number 0 belong to no message."""
    messages, open_streams = Messages(), dict[int, Stream]()
    written: list[tuple[int, int, Stream | None]] = []
    at = 0
    for number, size, ends in pieces:
        stream = open_streams.setdefault(number, messages.begin()) if number else None
        if stream is None:
            messages.buffers.add(size, None)
        else:
            messages.receive(stream, size)
        written.append((at, at + size, stream))
        at += size
        if stream is not None and ends:
            messages.end(open_streams.pop(number))
        kept = {
            index
            for begin, end, stream in written
            if begin < end and stream in open_streams.values()
            for index in range(begin // BUFFER_BYTES, (end - 1) // BUFFER_BYTES + 1)
        }
        expected = sum(min(BUFFER_BYTES, at - index * BUFFER_BYTES) for index in kept)
        assert messages.memory.held == expected
    for stream in open_streams.values():
        messages.end(stream)
    assert messages.memory.held == 0
