"""Listens on the gRPC port, and relays every connection to gRPC's server (`relay`)."""

from __future__ import annotations

import asyncio
import socket
from functools import partial

from service.grpc.relay import FRAMES_AT_ONCE, FRAMES_PER_SECOND, Connection
from service.grpc.streams import Streams
from service.grpc.turn import Turn
from service.rate_limit import RateLimiter
from service.server.connection_limit import Connections

BACKLOG = 2048
"""Connections that the system may queue until they are accepted."""


class Front:
    """The listening sockets of the gRPC port."""

    def __init__(self, connections: Connections, streams: Streams, path: str) -> None:
        """`connections`: the limit on them; `streams`: all streams; `path`: the Unix socket of
        gRPC's server."""
        self._connections = connections
        frames = RateLimiter(FRAMES_PER_SECOND, FRAMES_AT_ONCE)
        self._connect = partial(Connection, connections, streams, path, frames, Turn())

    async def start(self, sockets: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        self._servers = [
            await loop.create_server(self._connect, sock=sock, backlog=BACKLOG) for sock in sockets
        ]

    def stop_accepting(self) -> None:
        for server in self._servers:
            server.close()

    def stop(self) -> None:
        """Close all connections."""
        for connection in list(self._connections.connections):
            connection.abort()  # type: ignore[union-attr]
