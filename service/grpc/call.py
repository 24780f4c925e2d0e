"""Defines `Call`, the object that a method of the service gets for one RPC."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from service import errors
from service.grpc.streams import Stream
from service.http.context import request_id
from service.upload.arrival import Arrival
from service.upload.body import CHECK_INTERVAL

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Call:
    """One RPC: its headers, its client, and its message."""

    def __init__(self, context: Context, headers: dict[str, str], stream: Stream) -> None:
        """
        Args:
            context: gRPC's own object for the RPC.
            headers: The metadata that the client sent, with names in lower case.
            stream: The stream that carries the RPC. The stream counts the bytes of the message as
                they arrive.
        """
        self.context = context
        self.headers = headers
        self.client = stream.client
        """Address of the client."""
        self._stream = stream
        self.timing: dict[str, float] = {}
        """Duration of each completed stage of the RPC, in seconds."""
        self.request_id = request_id(self.headers.get("x-request-id", "").encode())

    async def message(self, max_seconds: float) -> bytes:
        """Receive the client's message.

        Args:
            max_seconds: Maximum number of seconds until the whole message has arrived.

        Raises:
            UploadTimeout: The message does not arrive within `max_seconds`, or arrives too slowly.
            TooManyMessages: The message was canceled, because too many messages were arriving.
            UploadMemoryFull: The upload memory, which all arriving messages and bodies share, is
                full.
            BadInference: The client ended the call without a message.
            CancelledError: The message is larger than allowed. In this case, gRPC has already sent
                the error status.
        """
        if self._stream.fault is not None:
            raise self._stream.fault
        self._stream.lease.max_seconds = max_seconds
        with Arrival(self._stream.lease, CHECK_INTERVAL):
            message = await self.context.read()
        if not isinstance(message, bytes):
            raise errors.BadInference("The call has no message. Send one request message.")
        self._stream.take()
        return message

    @property
    def time_left(self) -> float | None:
        """Seconds until the client's deadline. None: the client has set no deadline."""
        return self.context.time_remaining()
