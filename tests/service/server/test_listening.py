"""The sockets of several front ends: one port, and nobody else's."""

from __future__ import annotations

import socket
from collections import Counter

import pytest

from service.server.listening import bind


def test_bind_gives_all_front_ends_one_port() -> None:
    """All front ends have the same addresses, also with port 0."""
    found = bind("127.0.0.1", 0, 3)
    try:
        names = Counter(each.getsockname() for sockets in found for each in sockets)
        assert list(names.values()) == [3]
        assert next(iter(names))[1] > 0
    finally:
        close(found)


def test_connections_are_spread_over_front_ends() -> None:
    """The kernel gives each front end a share of the connections."""
    found = bind("127.0.0.1", 0, 2)
    clients = []
    try:
        for (one,) in found:
            one.listen(200)
            one.setblocking(False)
        clients = [socket.create_connection(found[0][0].getsockname()) for _ in range(100)]
        shares = [accepted(one) for (one,) in found]
        assert sum(shares) == 100
        assert min(shares) > 20
    finally:
        close(found)
        for client in clients:
            client.close()


@pytest.mark.parametrize("shares", [True, False])
def test_bind_rejects_a_port_in_use(shares: bool) -> None:
    """A port in use raises OSError with the address, even if its owner allows sharing."""
    with socket.socket() as taken:
        if shares:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}: Address already in use"):
            bind("127.0.0.1", port, 2)


def accepted(listening: socket.socket) -> int:
    count = 0
    while True:
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def close(found: list[list[socket.socket]]) -> None:
    for sockets in found:
        for each in sockets:
            each.close()
