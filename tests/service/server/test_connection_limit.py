"""Which connection makes room for a new one."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.server.connection_limit import CROWD, Connections

PLACES = 2 * CROWD


class Client:
    """A connection. Remembers whether it made room."""

    def __init__(self, network: str) -> None:
        self.network = network
        self.made_room = False

    def make_room(self) -> None:
        self.made_room = True


def connect(limit: Connections, network: str, count: int = 1, busy: bool = False) -> list[Client]:
    """`count` connections that have a place, each of which is busy or waits."""
    clients = [Client(network) for _ in range(count)]
    for client in clients:
        assert limit.admit(client)
        if busy:
            limit.waiting.pop(client)
    return clients


def test_crowd_gives_a_busy_connection_to_another_network() -> None:
    """A client that has all places with complete requests keeps no other client out, and its
    newest connection makes room. Waiting connections of others are not affected."""
    limit = Connections(PLACES)
    (other,) = connect(limit, "other")
    crowd = connect(limit, "crowd", PLACES - 1, busy=True)
    connect(limit, "newcomer", 3)
    assert [client for client in crowd if client.made_room] == crowd[-3:]
    assert not other.made_room


def test_largest_network_makes_room_first() -> None:
    """Its waiting connection whose last progress is longest ago, before its busy ones and before
    the waiting ones of smaller networks."""
    limit = Connections(PLACES)
    (small,) = connect(limit, "small")
    first, second = connect(limit, "large", 2)
    connect(limit, "large", PLACES - 3, busy=True)
    limit.waiting.move_to_end(first)
    connect(limit, "newcomer")
    assert second.made_room and not first.made_room and not small.made_room


def test_network_with_all_places_does_not_interrupt_itself() -> None:
    """Its new connections take places of its waiting ones, and are rejected where there are none,
    as behind NAT or a proxy."""
    limit = Connections(PLACES)
    (waiting,) = connect(limit, "proxy")
    busy = connect(limit, "proxy", PLACES - 1, busy=True)
    connect(limit, "proxy", busy=True)
    assert waiting.made_room
    assert not limit.admit(Client("proxy"))
    assert not any(client.made_room for client in busy)


def test_idle_connections_of_many_networks_do_not_interrupt_a_small_one() -> None:
    """A client with few connections keeps its busy ones while connections of others wait."""
    limit = Connections(4 * CROWD)
    busy = connect(limit, "client", 4, busy=True)
    idle = [connect(limit, str(number))[0] for number in range(4 * CROWD - 4)]
    connect(limit, "newcomer")
    assert idle[0].made_room and not any(client.made_room for client in busy)


def test_networks_with_equal_shares_keep_busy_connections() -> None:
    """A new connection is rejected where every network has one busy connection."""
    limit = Connections(PLACES)
    for number in range(PLACES):
        connect(limit, str(number), busy=True)
    assert not limit.admit(Client("newcomer"))


def test_places_are_free_once_connections_have_closed() -> None:
    """Connections that made room or were rejected do not count, and may be removed once more."""
    limit = Connections(3)
    first, second, third = connect(limit, "one", 3, busy=True)
    connect(limit, "other", busy=True)
    assert third.made_room
    rejected = Client("one")
    assert not limit.admit(rejected)
    for client in third, rejected, second, first:
        limit.remove(client)
    connect(limit, "one", 2)
    assert limit.held == 3


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["connect", "connect", "busy", "busy", "waits", "close"]),
        st.integers(0, 20),
    ),
    max_size=200,
)


@given(EVENTS, st.integers(1, 5))
def test_whatever_happens(events: list[tuple[str, int]], places: int) -> None:
    """There are never more connections than places. A busy connection makes room only for a network
    that has fewer connections afterwards, and every such network gets a place."""
    limit, clients = Connections(places), list[Client]()
    for event, number in events:
        if event == "connect":
            newcomer = Client(str(number % 3))
            counts = Counter(client.network for client in clients)
            waiting, full = set(limit.waiting), len(clients) == places
            most = max(counts.values(), default=0)
            admitted = limit.admit(newcomer)
            if not full or counts[newcomer.network] + 1 < most:
                assert admitted
            for client in [client for client in clients if client.made_room]:
                clients.remove(client)
                assert full and counts[client.network] >= counts[newcomer.network]
                if client not in waiting:
                    assert counts[newcomer.network] + 1 < counts[client.network] == most
            if admitted:
                clients.append(newcomer)
        elif clients:
            client = clients[number % len(clients)]
            if event == "busy":
                limit.waiting.pop(client, None)
            elif event == "waits":
                limit.waiting[client] = None
            else:
                clients.remove(client)
                limit.remove(client)
        assert limit.connections == set(clients) and len(clients) <= places
        assert set(limit.waiting) <= set(clients)
