"""When memory is given back to the system."""

from __future__ import annotations

from service.server.connection_limit import Connections
from service.server.memory import MIN_BYTES, MIN_CONNECTIONS, Memory, give_back
from service.upload.body import UploadMemory


class Open:
    """A connection."""

    network = "192.0.2.1"

    def make_room(self) -> None: ...


def opened(connections: Connections, count: int) -> None:
    for _ in range(count):
        assert connections.admit(Open())


def test_memory_is_given_back_once_after_half_of_many_connections_closed() -> None:
    """Memory is returned once, after half of many connections have closed."""
    memory = Memory([connections := Connections(1000)], UploadMemory(0))
    assert not memory.is_worth_giving_back()
    opened(connections, MIN_CONNECTIONS - 1)
    connections.connections.clear()
    assert not memory.is_worth_giving_back()
    opened(connections, 10 * MIN_CONNECTIONS)
    assert not memory.is_worth_giving_back()
    while len(connections.connections) > 5 * MIN_CONNECTIONS:
        assert not memory.is_worth_giving_back()
        connections.connections.pop()
    assert memory.is_worth_giving_back()
    assert not memory.is_worth_giving_back()
    connections.connections.clear()
    assert memory.is_worth_giving_back()


def test_memory_watches_the_connections_of_each_port() -> None:
    """Connections of one port can close while those of another stay open."""
    ports = [Connections(1000), Connections(1000)]
    memory = Memory(ports, UploadMemory(0))
    for closing, other in (ports, reversed(ports)):
        opened(other, 10 * MIN_CONNECTIONS - other.held)
        opened(closing, 2 * MIN_CONNECTIONS - closing.held)
        closing.connections.clear()
        assert memory.is_worth_giving_back()
        assert not memory.is_worth_giving_back()


def test_memory_watches_uploads() -> None:
    """Memory is returned once after half of many bytes were freed, with no connection closed."""
    memory = Memory([Connections(1000)], budget := UploadMemory(4 * MIN_BYTES))
    small, large = budget.lease(), budget.lease()
    small.add(MIN_BYTES - 1)
    small.release()
    assert not memory.is_worth_giving_back()
    small.add(MIN_BYTES)
    large.add(MIN_BYTES)
    assert not memory.is_worth_giving_back()
    large.release()
    assert memory.is_worth_giving_back()
    assert not memory.is_worth_giving_back()


def test_give_back_works_on_any_system() -> None:
    """Returning memory raises nothing, with and without glibc."""
    give_back()
