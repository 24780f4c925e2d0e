"""Binds listening sockets: one per address and front end, on the same port (SO_REUSEPORT).

A front end is a process that serves HTTP. The kernel distributes new connections over the sockets
by a hash of the addresses of client and server. The supervisor binds the sockets and keeps them
open. When a front end is restarted, the new process accepts the connections that wait in the
backlog of its socket. docs/decisions/0023-front-end-processes.md explains why the front ends do not
share one socket.
"""

from __future__ import annotations

import socket


def reserve(host: str, port: int) -> tuple[int, list[socket.socket]]:
    """Reserve a port. Front ends then bind their sockets to this port with `join`.

    Args:
        host: Host name or IP address.
        port: TCP port. 0: any free port.

    Returns:
        The port, and sockets that do not listen. The port is reserved until the sockets are closed.

    Raises:
        OSError: An address is not available, or another program uses it.
    """
    (sockets,) = bind(host, port, 1)
    return sockets[0].getsockname()[1], sockets


def join(host: str, port: int) -> list[socket.socket]:
    """Bind the sockets of one front end to a port that `reserve` returned. Raises OSError."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [_bound(family, address, shared=True) for family, *_, address in dict.fromkeys(infos)]


def bind(host: str, port: int, count: int) -> list[list[socket.socket]]:
    """Bind sockets for several front ends. The sockets do not listen yet.

    Args:
        host: Host name or IP address. Each address of a name gets a socket.
        port: TCP port. 0: any free port, the same for all sockets.
        count: Number of front ends.

    Returns:
        The sockets of each front end.

    Raises:
        OSError: An address is not available, or another program uses it.
    """
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = []
    for family, *_, address in dict.fromkeys(infos):
        ip, port = address[0], port or _free_port(family, str(address[0]))
        _check_unused(family, (ip, port, *address[2:]))
        addresses.append((family, (ip, port, *address[2:])))
    return [[_bound(*address, shared=True) for address in addresses] for _ in range(count)]


def _free_port(family: int, host: str) -> int:
    with _bound(family, (host, 0), shared=False) as free:
        port: int = free.getsockname()[1]
        return port


def _check_unused(family: int, address: tuple[object, ...]) -> None:
    """Raise OSError if another program uses the address, even if that program allows sharing."""
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
