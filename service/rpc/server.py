"""gRPC's server, beside uvicorn's on the same event loop.

What a client may do to it is bounded: the size of a message, how long a connection may idle, and
nothing compressed, which unpacks to any size. TLS is left to what stands in front, as over HTTP.
"""

from __future__ import annotations

import grpc
from starlette.datastructures import State

from service.logs import log
from service.rpc.methods import Methods
from service.settings import Settings

IDENTITY = 1
"""Of the algorithms that gRPC knows for compression, the one that does nothing."""


class RpcServer:
    """Serves on `grpc_port` from `start` to `stop`."""

    def __init__(self, parts: State, settings: Settings, version: str) -> None:
        self._methods = Methods(parts, version)
        self._settings = settings

    async def start(self) -> None:
        """Raises OSError where the port cannot be had."""
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._server = grpc.aio.server(
            handlers=[self._methods.handler()],
            options=[
                # Among the processes that the supervisor keeps the port for, and no others.
                ("grpc.so_reuseport", int(settings.workers > 1)),
                ("grpc.max_receive_message_length", settings.max_upload_bytes),
                ("grpc.max_connection_idle_ms", 1000 * settings.keep_alive_timeout),
                ("grpc.http2.bdp_probe", 0),  # with it, gRPC takes in what nobody has asked for yet
                ("grpc.compression_enabled_algorithms_bitset", IDENTITY),
            ],
        )
        try:
            port = self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {host}:{settings.grpc_port}") from error
        await self._server.start()
        log.info("gRPC on %s:%d", host, port)

    async def stop(self, seconds: float) -> None:
        """Take no more RPCs, and give those under way so long."""
        await self._server.stop(seconds)
