"""Which messages may arrive, and what they take together."""

from __future__ import annotations

import pytest

from batching import QueueFull
from service.errors import BodyTooLarge, UploadMemoryFull
from service.grpc.streams import IDLE, Stream, Streams
from service.server.connection_limit import PROGRESS_BYTES
from service.upload.body import UploadMemory


def ignore(*_: object) -> None:
    pass


def failed(*streams: Stream) -> list[Stream]:
    return [stream for stream in streams if isinstance(stream.fault, QueueFull)]


def test_bytes_count_as_they_arrive() -> None:
    """They count until the handler has the message or the stream is closed."""
    budget = UploadMemory(100)
    streams = Streams(budget, 8)
    taken, closed = (streams.open("::1", ignore, ignore) for _ in range(2))
    for stream in taken, closed:
        streams.receive(stream, 10)
        streams.receive(stream, 20)
    assert budget.held == 60
    taken.take()
    assert budget.held == 30
    streams.close(closed)
    streams.close(taken)
    assert budget.held == 0 and len(streams) == 0


def test_a_message_beyond_the_memory_fails() -> None:
    """Its handler is told at once, or when it starts."""
    streams = Streams(UploadMemory(100), 8)
    early, late = (streams.open("::1", ignore, ignore) for _ in range(2))
    told: list[Exception] = []
    late.share.begin(told.append)
    streams.receive(early, 90)
    streams.receive(late, 20)
    assert isinstance(told[0], UploadMemoryFull) and late.fault is told[0]
    streams.receive(early, 20)
    assert isinstance(early.fault, BodyTooLarge), "more than there is in all"


def test_the_message_that_stalled_longest_makes_room() -> None:
    """Progress counts, not age; a complete message keeps its place."""
    streams = Streams(UploadMemory(2 * PROGRESS_BYTES), 3)
    complete, slow, idle = (streams.open("::1", ignore, ignore) for _ in range(3))
    streams.receive(slow, PROGRESS_BYTES)
    streams.complete(complete)
    streams.open("::1", ignore, ignore)
    assert failed(complete, slow, idle) == [], "the complete message left a place"
    streams.open("::1", ignore, ignore)
    assert failed(complete, slow, idle) == [idle]


def test_a_few_bytes_are_no_progress() -> None:
    """Only `PROGRESS_BYTES` are, in pieces of any size, however often bytes arrive."""
    streams = Streams(UploadMemory(9 * PROGRESS_BYTES), 3)
    trickle, steady, other = (streams.open("::1", ignore, ignore) for _ in range(3))
    for _ in range(PROGRESS_BYTES // 8):
        streams.receive(steady, 8)
    for _ in range(100):
        streams.receive(trickle, 1)
    for expected in [trickle], [trickle, other], [trickle, other, steady]:
        streams.open("::1", ignore, ignore)
        assert failed(trickle, other, steady) == expected


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["2001:db8::1", "2001:db8::2"]])
def test_the_network_with_most_messages_makes_room(addresses: list[str]) -> None:
    """However often a client opens streams, a slow message of another one keeps its place. The
    addresses of one network count together."""
    streams = Streams(UploadMemory(9 * PROGRESS_BYTES), 8)
    slow = streams.open("10.9.9.9", ignore, ignore)
    flood = [streams.open(addresses[n % len(addresses)], ignore, ignore) for n in range(1000)]
    late = streams.open("10.8.8.8", ignore, ignore)
    assert slow.fault is None and late.fault is None
    assert [stream for stream in flood if stream.fault is None] == flood[-6:]


def test_networks_with_one_message_each() -> None:
    """The one that has made no progress for the longest time makes room."""
    streams = Streams(UploadMemory(9 * PROGRESS_BYTES), 3)
    first, second, third = (streams.open(f"10.0.0.{n}", ignore, ignore) for n in range(3))
    streams.receive(first, PROGRESS_BYTES)
    streams.open("10.0.0.9", ignore, ignore)
    assert failed(first, second, third) == [second]


def test_any_number_of_idle_streams() -> None:
    """However many arrive, those that have not failed are at most as many as allowed."""
    streams = Streams(UploadMemory(100), 4)
    opened = [streams.open("::1", ignore, ignore) for _ in range(1000)]
    assert [stream for stream in opened if stream.fault is None] == opened[-4:]


def test_claim_knows_open_streams_only() -> None:
    """A stream is claimed once, before it is closed."""
    streams = Streams(UploadMemory(100), 4)
    used, closed = (streams.open("::1", ignore, ignore) for _ in range(2))
    streams.close(closed)
    assert streams.claim(used.name) is used
    for name in used.name, closed.name, "", "0", "1":
        assert streams.claim(name) is None


def test_names_are_not_guessable() -> None:
    """Names have one length and do not follow from each other."""
    streams = Streams(UploadMemory(100), 4)
    names = [streams.open("::1", ignore, ignore).name for _ in range(1000)]
    assert {len(name) for name in names} == {32}
    assert len({name[:8] for name in names}) > 900 and names != sorted(names)


class Connection:
    """A connection whose streams are closed where it is closed."""

    def __init__(self, streams: Streams) -> None:
        self.closed = False
        self._all = streams
        self._own: list[Stream] = []

    def open(self, count: int) -> list[Stream]:
        self._own += [self._all.open("::1", ignore, self._close) for _ in range(count)]
        return self._own[-count:]

    def _close(self) -> None:
        self.closed = True
        for stream in self._own:
            self._all.close(stream)


def test_streams_without_a_handler_are_bounded() -> None:
    """Beyond the bound, the connection with the oldest is closed: of those without a handler, and
    of those with an unread answer. Streams with a handler do not count."""
    streams = Streams(UploadMemory(100), 4)
    handled, ignored, unread, honest = (Connection(streams) for _ in range(4))
    for stream in handled.open(IDLE):
        streams.claim(stream.name)
    ignored.open(1000)
    for stream in unread.open(1000):
        streams.claim(stream.name)
        streams.answer(stream)
    for stream in honest.open(IDLE - 2000):
        streams.claim(stream.name)
        streams.answer(stream)
    assert not any(one.closed for one in (handled, ignored, unread, honest))
    honest.open(1)
    assert [one.closed for one in (ignored, unread)] == [True, False]
    honest.open(1001)
    assert [one.closed for one in (unread, handled, honest)] == [True, False, False]
