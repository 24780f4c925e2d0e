"""Starts and stops gRPC's server, on the same event loop as uvicorn's server.

gRPC's server listens on a Unix socket that only the server's user may open. Clients connect to the
`listener`, which limits connections and arriving messages. Compressed messages are rejected, since
they can decompress to any size. TLS is the task of a proxy in front, as for HTTP.
"""

from __future__ import annotations

import logging
import tempfile

import grpc

from service.grpc.listener import RelayListener
from service.grpc.methods import Methods
from service.grpc.streams import IDLE, Streams
from service.inference.service import Service
from service.server.connection_limit import Connections, usable_limit
from service.server.listening import bind, join
from service.settings import Settings
from service.telemetry.logs import log

IDENTITY = 1
"""Bit of the compression algorithm that does not compress."""
CLIENT_ERRORS = ("ExecuteBatchError raised", "Invalid encoding")
"""Beginnings of messages that gRPC logs as errors although clients cause them."""
MAX_STREAMS = 128
"""Maximum number of concurrent RPCs of a connection. Clients delay further ones."""


def _is_server_error(record: logging.LogRecord) -> bool:
    """Logging filter that drops errors of clients: a disconnect during a response, or a header that
    is not UTF-8. gRPC logs them as errors; the `interceptor` logs such calls in one line."""
    return not str(record.msg).startswith(CLIENT_ERRORS)


class RpcServer:
    """Serves gRPC on `settings.grpc_port` from `start` to `stop`."""

    def __init__(self, service: Service, settings: Settings, version: str) -> None:
        """
        Args:
            service: Answers the calls.
            settings: The settings.
            version: The version that the server metadata contains.
        """
        self._service = service
        self._settings = settings
        self._version = version

    async def start(self) -> None:
        """Listen on the port. Raises OSError if the port or the Unix socket is not available."""
        settings = self._settings
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_server_error)
        streams = Streams(self._service.uploads, settings.max_queue_size)
        self._server = grpc.aio.server(
            handlers=[Methods(self._service, self._version, streams).handler()],
            options=[
                ("grpc.max_receive_message_length", settings.max_upload_bytes),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                # The default limit of 1,000 includes calls of clients that have left.
                ("grpc.server.max_pending_requests", IDLE),
                ("grpc.server.max_pending_requests_hard_limit", 2 * IDLE),
                ("grpc.max_connection_idle_ms", 1000 * settings.keep_alive_timeout),
                ("grpc.http2.max_ping_strikes", 0),  # relays limit the rate of pings
                ("grpc.http2.bdp_probe", 0),  # it would receive data before a handler reads it
                ("grpc.compression_enabled_algorithms_bitset", IDENTITY),
            ],
        )
        try:
            # Only worker processes share the port; the supervisor reserves it for them.
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
        self.connections = Connections(usable_limit(settings, decoders))
        self._listener = RelayListener(self.connections, streams, path)
        await self._listener.start(sockets)
        address = f"[{host}]" if ":" in host else host
        log.info("gRPC on %s:%d", address, sockets[0].getsockname()[1])

    async def stop(self, seconds: float) -> None:
        """Accept no more RPCs, and wait up to `seconds` for those in progress."""
        self._listener.stop_accepting()
        await self._server.stop(seconds)
        self._listener.stop()
        self._folder.cleanup()
