"""Tests that front ends share a port, and that services do not."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from service.server.listening import join, listen, reserve

HOST = "127.0.0.1"


def port_of(one: socket.socket) -> int:
    port: int = one.getsockname()[1]
    return port


def test_front_ends_have_one_port() -> None:
    """All front ends have the reserved port, also if it is any free port."""
    port, found = reserve(HOST, 0)
    try:
        for _ in range(3):
            found += join(HOST, port)
        assert port > 0
        addresses = [one.getsockname() for one in found if one.family == socket.AF_INET]
        assert addresses == [(HOST, port)] * 4
    finally:
        close(found)


def test_all_addresses_of_a_host_have_one_port() -> None:
    """With port 0, a host name with several addresses gets one port."""
    found = listen("localhost", 0)
    try:
        assert len({port_of(one) for one in found}) == 1
    finally:
        close(found)


def test_connections_are_spread_over_front_ends() -> None:
    """The kernel gives each front end a share of the connections."""
    port, found = reserve(HOST, 0)
    clients = []
    try:
        front_ends = join(HOST, port) + join(HOST, port)
        found += front_ends
        for one in front_ends:
            one.listen(200)
            one.setblocking(False)
        clients = [socket.create_connection((HOST, port)) for _ in range(100)]
        shares = [accepted(one) for one in front_ends]
        assert sum(shares) == 100
        assert min(shares) > 20
    finally:
        close(found)
        close(clients)


@pytest.mark.parametrize("opens", [listen, reserve])
@pytest.mark.parametrize("shares", [True, False])
def test_port_of_another_program_is_rejected(shares: bool, opens: Callable[..., object]) -> None:
    """A port in use raises OSError with the address, even if its owner allows sharing."""
    with socket.socket() as taken:
        if shares:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind((HOST, 0))
        taken.listen()
        port = port_of(taken)
        with pytest.raises(OSError, match=f"{HOST}:{port}: Address already in use"):
            opens(HOST, port)


@pytest.mark.parametrize("opens", [listen, reserve])
def test_port_of_another_service_is_rejected(opens: Callable[..., object]) -> None:
    """A service has its port from its start on, even if its front ends do not listen yet."""
    for found in listen(HOST, 0), reserve(HOST, 0)[1]:
        try:
            port = port_of(found[-1])
            with pytest.raises(OSError, match=f"{HOST}:{port}: Address already in use"):
                opens(HOST, port)
        finally:
            close(found)
        opened = listen(HOST, port)
        close(opened)


def accepted(listening: socket.socket) -> int:
    count = 0
    while True:
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def close(found: list[socket.socket]) -> None:
    for one in found:
        one.close()
