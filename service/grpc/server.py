"""gRPC's server, beside uvicorn's on the same event loop, and the front that its clients reach.

The server listens on a Unix socket that only this user may open; clients connect to the `front`,
which bounds connections and arriving messages. Nothing compressed is accepted, since it unpacks to
any size. TLS is left to what stands in front, as over HTTP.
"""

from __future__ import annotations

import logging
import tempfile

import grpc

from service.grpc.front import Front
from service.grpc.methods import Methods
from service.grpc.streams import IDLE, Streams
from service.inference.service import Service
from service.server.connection_limit import Connections, bound, descriptors
from service.server.listening import bind, join
from service.settings import Settings
from service.telemetry.logs import log

IDENTITY = 1
"""Of the algorithms that gRPC knows for compression, the one that does nothing."""
CLIENT_FAULTS = ("ExecuteBatchError raised", "Invalid encoding")
"""How messages begin that gRPC logs as errors, and that clients cause."""
MAX_STREAMS = 128
"""Concurrent RPCs of a connection; clients hold further ones back until others end."""


def _is_news(record: logging.LogRecord) -> bool:
    """False for what gRPC logs as an error, with a traceback, where only the client is at fault: it
    has left while its call was answered, or has sent a header that is not UTF-8. `call` logs the
    call."""
    return not str(record.msg).startswith(CLIENT_FAULTS)


class RpcServer:
    """Serves on `grpc_port` from `start` to `stop`."""

    def __init__(self, service: Service, settings: Settings, version: str) -> None:
        self._service = service
        self._settings = settings
        self._version = version

    async def start(self) -> None:
        """Raises OSError where the port, or a folder for the socket, is not available."""
        settings = self._settings
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)
        streams = Streams(self._service.uploads, settings.max_queue_size)
        self._server = grpc.aio.server(
            handlers=[Methods(self._service, self._version, streams).handler()],
            options=[
                ("grpc.max_receive_message_length", settings.max_upload_bytes),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                # By default it cancels calls beyond 1,000, including those whose clients left.
                ("grpc.server.max_pending_requests", IDLE),
                ("grpc.server.max_pending_requests_hard_limit", 2 * IDLE),
                ("grpc.max_connection_idle_ms", 1000 * settings.keep_alive_timeout),
                ("grpc.http2.max_ping_strikes", 0),  # a relay reads pings at a bounded rate
                ("grpc.http2.bdp_probe", 0),  # with it, gRPC takes in what nobody has asked for yet
                ("grpc.compression_enabled_algorithms_bitset", IDENTITY),
            ],
        )
        try:
            # Among the processes that the supervisor keeps the port for, and no others.
            shared = settings.workers > 1
            host, port = settings.host, settings.grpc_port or 0
            sockets = join(host, port) if shared else bind(host, port, 1)[0]
        except OSError as error:
            raise OSError(f"gRPC {error.strerror}") from error
        self._folder = tempfile.TemporaryDirectory(prefix="shoal-")
        path = f"{self._folder.name}/grpc"
        self._server.add_insecure_port(f"unix:{path}")
        await self._server.start()
        decoders = self._service.decoders.descriptors
        most = bound(settings.max_connections, descriptors(settings), decoders)
        self.connections = Connections(most)
        self._front = Front(self.connections, streams, path)
        await self._front.start(sockets)
        address = f"[{host}]" if ":" in host else host
        log.info("gRPC on %s:%d", address, sockets[0].getsockname()[1])

    async def stop(self, seconds: float) -> None:
        """Accept no more RPCs, and give those in progress `seconds` to end."""
        self._front.stop_accepting()
        await self._server.stop(seconds)
        self._front.stop()
        self._folder.cleanup()
