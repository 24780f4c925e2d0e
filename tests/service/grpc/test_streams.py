"""Tests the limits of arriving messages and of unread responses."""

from __future__ import annotations

import pytest

from service.errors import BodyTooLarge, TooManyMessages, UploadMemoryFull
from service.grpc.streams import UNREAD, Stream, Streams
from service.server.connection_limit import PROGRESS_BYTES
from service.upload.body import UploadMemory


def ignore(*_: object) -> None:
    pass


def canceled(*streams: Stream) -> list[Stream]:
    return [stream for stream in streams if isinstance(stream.fault, TooManyMessages)]


def test_streams_count_bytes_as_they_arrive() -> None:
    """Bytes count until the handler has the message or the stream is closed."""
    memory = UploadMemory(100)
    streams = Streams(memory, 8)
    taken, closed = (streams.open("::1", ignore, ignore) for _ in range(2))
    for stream in taken, closed:
        streams.receive(stream, 10)
        streams.receive(stream, 20)
    assert memory.held == 60
    taken.take()
    assert memory.held == 30
    streams.close(closed)
    streams.close(taken)
    assert memory.held == 0 and len(streams) == 0


def test_streams_fail_a_message_beyond_the_memory() -> None:
    """A handler gets the error immediately if it waits for the message, or when it begins."""
    streams = Streams(UploadMemory(100), 8)
    early, late = (streams.open("::1", ignore, ignore) for _ in range(2))
    errors: list[Exception] = []
    late.lease.begin(errors.append)
    streams.receive(early, 90)
    streams.receive(late, 20)
    assert isinstance(errors[0], UploadMemoryFull) and late.fault is errors[0]
    streams.receive(early, 20)
    assert isinstance(early.fault, BodyTooLarge), "it is larger than the whole memory"


def test_streams_cancel_the_message_that_stalled_longest() -> None:
    """Progress decides, not age. A complete message is not canceled."""
    streams = Streams(UploadMemory(2 * PROGRESS_BYTES), 3)
    complete, slow, idle = (streams.open("::1", ignore, ignore) for _ in range(3))
    streams.receive(slow, PROGRESS_BYTES)
    streams.complete(complete)
    streams.open("::1", ignore, ignore)
    assert canceled(complete, slow, idle) == [], "the complete message does not count"
    streams.open("::1", ignore, ignore)
    assert canceled(complete, slow, idle) == [idle]


def test_streams_count_few_bytes_as_no_progress() -> None:
    """Only `PROGRESS_BYTES` are progress, in pieces of any size."""
    streams = Streams(UploadMemory(9 * PROGRESS_BYTES), 3)
    trickle, steady, other = (streams.open("::1", ignore, ignore) for _ in range(3))
    for _ in range(PROGRESS_BYTES // 8):
        streams.receive(steady, 8)
    for _ in range(100):
        streams.receive(trickle, 1)
    for expected in [trickle], [trickle, other], [trickle, other, steady]:
        streams.open("::1", ignore, ignore)
        assert canceled(trickle, other, steady) == expected


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["2001:db8::1", "2001:db8::2"]])
def test_streams_cancel_messages_of_the_network_with_most(addresses: list[str]) -> None:
    """A client that opens many streams does not cancel a slow message of another. The addresses of
    one network count together."""
    streams = Streams(UploadMemory(9 * PROGRESS_BYTES), 8)
    slow = streams.open("10.9.9.9", ignore, ignore)
    flood = [streams.open(addresses[n % len(addresses)], ignore, ignore) for n in range(1000)]
    late = streams.open("10.8.8.8", ignore, ignore)
    assert slow.fault is None and late.fault is None
    assert [stream for stream in flood if stream.fault is None] == flood[-6:]


def test_streams_of_networks_with_one_message_each() -> None:
    """The message without progress for the longest time is canceled."""
    streams = Streams(UploadMemory(9 * PROGRESS_BYTES), 3)
    first, second, third = (streams.open(f"10.0.0.{n}", ignore, ignore) for n in range(3))
    streams.receive(first, PROGRESS_BYTES)
    streams.open("10.0.0.9", ignore, ignore)
    assert canceled(first, second, third) == [second]


def test_streams_limit_arriving_messages() -> None:
    """However many streams open, only the allowed number continues to arrive."""
    streams = Streams(UploadMemory(100), 4)
    opened = [streams.open("::1", ignore, ignore) for _ in range(1000)]
    assert [stream for stream in opened if stream.fault is None] == opened[-4:]


def test_claim_finds_an_open_stream_once() -> None:
    """A stream can be claimed once, before it is closed. Other names find no stream."""
    streams = Streams(UploadMemory(100), 4)
    used, closed = (streams.open("::1", ignore, ignore) for _ in range(2))
    streams.close(closed)
    assert streams.claim(used.name) is used
    for name in used.name, closed.name, "", "0", "1":
        assert streams.claim(name) is None


def test_stream_names_are_not_guessable() -> None:
    """Names have the same length and do not follow from each other."""
    streams = Streams(UploadMemory(100), 4)
    names = [streams.open("::1", ignore, ignore).name for _ in range(1000)]
    assert {len(name) for name in names} == {32}
    assert len({name[:8] for name in names}) > 900 and names != sorted(names)


class Connection:
    """A connection that closes its streams when it is closed."""

    def __init__(self, streams: Streams, client: str = "::1") -> None:
        self.closed = False
        self._all = streams
        self._client = client
        self._own: list[Stream] = []

    def open(self, count: int) -> list[Stream]:
        self._own += [self._all.open(self._client, ignore, self._close) for _ in range(count)]
        return self._own[-count:]

    def answer(self, count: int) -> list[Stream]:
        """Open streams whose handlers begin and end. The client does not receive the responses."""
        opened = self.open(count)
        for stream in opened:
            self._all.claim(stream.name)
            self._all.answer(stream)
        return opened

    def _close(self) -> None:
        self.closed = True
        for stream in self._own:
            self._all.close(stream)


def test_streams_limit_unread_responses() -> None:
    """Beyond the limit, the connection with the oldest unread response is closed. Streams whose
    handler has not begun or not ended do not count."""
    streams = Streams(UploadMemory(100), 4)
    waiting, handled, unread, honest = (Connection(streams) for _ in range(4))
    waiting.open(UNREAD)
    for stream in handled.open(UNREAD):
        streams.claim(stream.name)
    unread.answer(1000)
    honest.answer(UNREAD - 1000)
    assert not any(one.closed for one in (waiting, handled, unread, honest))
    honest.answer(1)
    assert [one.closed for one in (waiting, handled, unread, honest)] == [False, False, True, False]


def test_unread_responses_of_other_networks_stay() -> None:
    """Beyond the limit, the client network with the most unread responses loses a connection."""
    streams = Streams(UploadMemory(100), 4)
    honest = Connection(streams, "10.9.9.9")
    honest.answer(1)
    flood = [Connection(streams, f"10.0.0.{n % 2}") for n in range(100)]
    for one in flood:
        one.answer(100)
    assert not honest.closed
    assert [one for one in flood if not one.closed] == flood[-20:]


def test_client_that_reads_its_responses_is_not_expelled() -> None:
    """At the limit, responses that are unread for long make room first. A client that reads its
    responses has many new ones, where each of many other networks has only a few old ones."""
    streams = Streams(UploadMemory(100), 4)
    flood = [Connection(streams, f"10.0.0.{n}") for n in range(UNREAD // 16)]
    for one in flood:
        for stream in one.answer(16):
            streams.mark_unread(stream)
    honest = Connection(streams, "10.9.9.9")
    honest.answer(100)
    assert not honest.closed
    assert sum(one.closed for one in flood) == -(-100 // 16)


def test_streams_close_connections_that_send_after_the_answer() -> None:
    """Bytes that no handler waits for cannot stay: a stream that was answered is closed with its
    connection when memory is needed."""
    memory = UploadMemory(100)
    streams = Streams(memory, 8)
    closed = list[str]()
    answered = streams.open("::1", ignore, lambda: closed.append("answered"))
    assert streams.claim(answered.name) is answered
    streams.answer(answered)
    streams.receive(answered, 60)
    assert closed == ["answered"], "slow streams hold at most half of the memory"
    taken = streams.open("::1", ignore, lambda: closed.append("taken"))
    taken.take()
    streams.receive(taken, 60)
    assert closed == ["answered", "taken"]
    streams.close(answered)
    streams.close(taken)
    assert memory.held == 0
