"""Listening sockets: one an address and front end, all on the same port (SO_REUSEPORT).

The kernel spreads connections over them by a hash of both ends' addresses. The supervisor binds
them and keeps them, so a front end that dies leaves its line of new connections to the next one.
Why not one socket for all: docs/decisions/0023-front-end-processes.md.
"""

from __future__ import annotations

import socket


def reserve(host: str, port: int) -> tuple[int, list[socket.socket]]:
    """The port that front ends may `join`, and what keeps it for them: sockets that never listen.

    Raises OSError as `bind`.
    """
    (kept,) = bind(host, port, 1)
    return kept[0].getsockname()[1], kept


def join(host: str, port: int) -> list[socket.socket]:
    """A front end's share of a port that is reserved. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [_bound(family, address, shared=True) for family, *_, address in dict.fromkeys(found)]


def bind(host: str, port: int, count: int) -> list[list[socket.socket]]:
    """For each of `count` front ends a socket on every address of `host`; they begin to listen when
    somebody accepts from them.

    Raises OSError where an address cannot be had, also where another program shares its own.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = []
    for family, *_, address in dict.fromkeys(found):
        at, port = address[0], port or _free(family, str(address[0]))
        _check(family, (at, port, *address[2:]))
        addresses.append((family, (at, port, *address[2:])))
    return [[_bound(*address, shared=True) for address in addresses] for _ in range(count)]


def _free(family: int, host: str) -> int:
    with _bound(family, (host, 0), shared=False) as free:
        port: int = free.getsockname()[1]
        return port


def _check(family: int, address: tuple[object, ...]) -> None:
    """Sharing is among ourselves: whoever has the address already is in the way."""
    _bound(family, address, shared=False).close()


def _bound(family: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        host, port = address[:2]
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listening
