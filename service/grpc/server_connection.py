"""Connects a relay to gRPC's server over a Unix socket."""

from __future__ import annotations

import asyncio
from typing import Protocol

_INBOX = memoryview(bytearray(32_768))
"""Buffer for reading, which all connections share."""


class Client(Protocol):
    """The methods of a relay that `ServerConnection` calls."""

    def server_connected(self, server: asyncio.Transport) -> None:
        """Begin to relay. Called when the connection is open."""

    def relay_response(self, data: bytes) -> None:
        """Relay bytes to the client. Called when gRPC's server has sent the bytes."""

    def server_lost(self) -> None:
        """Disconnect the client. Called when the connection is closed."""

    def pause(self, reason: str) -> None:
        """Stop reading from the client. Called when the write buffer to gRPC's server is full."""

    def resume(self, reason: str) -> None:
        """Read from the client again. Called when the write buffer has room again."""


class ServerConnection(asyncio.BufferedProtocol):
    """Passes the events of the connection to gRPC's server on to the relay."""

    def __init__(self, client: Client) -> None:
        """
        Args:
            client: The relay.
        """
        self._client = client

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._client.server_connected(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _INBOX

    def buffer_updated(self, count: int) -> None:
        self._client.relay_response(bytes(_INBOX[:count]))

    def connection_lost(self, error: Exception | None) -> None:
        self._client.server_lost()

    def pause_writing(self) -> None:
        self._client.pause("server")

    def resume_writing(self) -> None:
        self._client.resume("server")
