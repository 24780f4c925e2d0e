"""Opens listening sockets for one process, or for several front ends that share a port.

A front end is a process that serves HTTP. Each front end has a socket per address, on the same port
(SO_REUSEPORT). The kernel distributes new connections over the sockets by a hash of the addresses
of client and server. The supervisor binds the sockets and keeps them open. When a front end is
restarted, the new process accepts the connections that wait in the backlog of its socket.
docs/decisions/0023-front-end-processes.md explains why the front ends do not share one socket.

Two services cannot have the same port. For one process, the kernel ensures this, because its
sockets do not allow sharing. With several front ends, another service could take the port before
the front ends listen. So the supervisor also holds a lock for each address.
"""

from __future__ import annotations

import errno
import os
import socket
import sys

BACKLOG = 2048
"""Maximum length of the backlog, the operating system's queue of connections to accept."""

_Address = tuple[int, tuple[object, ...]]
"""Family and address of a socket."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Open the listening sockets of a process that shares its port with no other process.

    Args:
        host: Host name or IP address. Each address of a name gets a socket.
        port: TCP port. 0: any free port, the same for all addresses.

    Raises:
        OSError: An address is not available, or another program uses it.
    """
    opened = []
    for address in _addresses(host, port):
        with _lock(*address):
            opened.append(_open(*address, shared=False, listens=True))
    return opened


def reserve(host: str, port: int) -> tuple[int, list[socket.socket]]:
    """Reserve a port. Front ends then open their sockets on this port with `join`.

    Args:
        host: Host name or IP address.
        port: TCP port. 0: any free port.

    Returns:
        The port, and sockets that do not listen. The port is reserved until the sockets are closed.

    Raises:
        OSError: An address is not available, or another program uses it.
    """
    addresses = _addresses(host, port)
    reserved: list[socket.socket] = []
    for address in addresses:
        _open(*address, shared=False).close()  # fails if another program uses the address
        reserved += [_lock(*address), _open(*address, shared=True)]
    return reserved[-1].getsockname()[1], reserved


def join(host: str, port: int) -> list[socket.socket]:
    """Open the sockets of one front end on a port that `reserve` returned. The sockets do not
    listen yet. Raises OSError."""
    return [_open(*address, shared=True) for address in _addresses(host, port)]


def _addresses(host: str, port: int) -> list[_Address]:
    """Return the addresses of a host, all of them with the same port, which is not 0."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses: list[_Address] = []
    for family, *_, address in dict.fromkeys(infos):
        ip, _, *more = address
        port = port or _free_port(family, str(ip))
        addresses.append((family, (ip, port, *more)))
    return addresses


def _free_port(family: int, host: str) -> int:
    with _open(family, (host, 0), shared=False) as free:
        port: int = free.getsockname()[1]
        return port


def _open(
    family: int, address: tuple[object, ...], *, shared: bool, listens: bool = False
) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(address)
        if listens:
            opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise _cannot_listen(address, error.errno) from None
    return opened


def _lock(family: int, address: tuple[object, ...]) -> socket.socket:
    """Lock an address against other services in the same network namespace.

    The lock is an abstract Unix socket, and ends when the socket is closed. Only Linux has such
    sockets. On other systems, nothing is locked. Raises OSError if another service has locked the
    address.
    """
    lock = socket.socket(socket.AF_UNIX)
    if sys.platform == "linux":
        try:
            lock.bind(f"\0shoal {address[0]} {address[1]}")
        except OSError:
            lock.close()
            raise _cannot_listen(address, errno.EADDRINUSE) from None
    return lock


def _cannot_listen(address: tuple[object, ...], number: int | None) -> OSError:
    """Return the error for an address that is not available. `number`: the error's number."""
    reason = os.strerror(number or errno.EADDRNOTAVAIL)
    return OSError(number, f"cannot listen on {address[0]}:{address[1]}: {reason}")
