"""Which messages may arrive, and what they take together."""

from __future__ import annotations

from batching import QueueFull
from service.budget import Budget
from service.rpc.streams import Stream, Streams


def ignore(stream: Stream) -> None:
    pass


def failed(*streams: Stream) -> list[Stream]:
    return [stream for stream in streams if isinstance(stream.fault, QueueFull)]


def test_bytes_count_as_they_arrive() -> None:
    """They count until the handler has the message or the stream is closed."""
    budget = Budget(100)
    streams = Streams(budget, 8)
    taken, closed = (streams.open("::1", ignore) for _ in range(2))
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
    streams = Streams(Budget(100), 8)
    early, late = (streams.open("::1", ignore) for _ in range(2))
    told: list[Exception] = []
    late.share.begins(told.append)
    streams.receive(early, 90)
    streams.receive(late, 20)
    assert isinstance(told[0], QueueFull) and late.fault is told[0]
    streams.receive(early, 20)
    assert isinstance(early.fault, QueueFull)


def test_the_message_that_stalled_longest_makes_room() -> None:
    """Progress counts, not age; a complete message keeps its place."""
    streams = Streams(Budget(100), 3)
    complete, slow, idle = (streams.open("::1", ignore) for _ in range(3))
    streams.receive(slow, 1)
    streams.complete(complete)
    streams.open("::1", ignore)
    assert failed(complete, slow, idle) == [], "the complete message left a place"
    streams.open("::1", ignore)
    assert failed(complete, slow, idle) == [idle]


def test_any_number_of_idle_streams() -> None:
    """However many arrive, those that have not failed are at most as many as allowed."""
    streams = Streams(Budget(100), 4)
    opened = [streams.open("::1", ignore) for _ in range(1000)]
    assert [stream for stream in opened if stream.fault is None] == opened[-4:]


def test_find_knows_open_streams_only() -> None:
    streams = Streams(Budget(100), 4)
    stream = streams.open("::1", ignore)
    assert streams.find(str(stream.number)) is stream
    streams.close(stream)
    assert streams.find(str(stream.number)) is None
