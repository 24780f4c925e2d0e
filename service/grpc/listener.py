"""Listens on the gRPC port, and creates a relay to gRPC's server for each connection."""

from __future__ import annotations

import asyncio
import socket
from functools import partial

from service.grpc.frame_credit import FrameLimiter
from service.grpc.relay import Relay
from service.grpc.streams import Streams
from service.server.connection_limit import Connections
from service.server.listening import BACKLOG


class RelayListener:
    """The listening sockets of the gRPC port."""

    def __init__(self, connections: Connections, streams: Streams, path: str) -> None:
        """
        Args:
            connections: Limits the number of connections.
            streams: The streams of all connections.
            path: Path of the Unix socket on which gRPC's server listens.
        """
        self._connections = connections
        self._relay = partial(Relay, connections, streams, path, FrameLimiter())

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accept connections on `sockets`."""
        loop = asyncio.get_running_loop()
        self._servers = [
            await loop.create_server(self._relay, sock=sock, backlog=BACKLOG) for sock in sockets
        ]

    def stop_accepting(self) -> None:
        """Close the listening sockets. Open connections stay open."""
        for server in self._servers:
            server.close()

    def stop(self) -> None:
        """Close all connections."""
        for connection in list(self._connections.connections):
            connection.abort()  # type: ignore[union-attr]
