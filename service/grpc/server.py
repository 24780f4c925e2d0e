"""Starts and stops gRPC's server, on the same event loop as the HTTP server.

gRPC's server listens on a Unix socket that only the user of this process may open. Clients connect
to `listener`. A relay for each connection forwards its HTTP/2 frames to the Unix socket and
enforces limits. Compressed messages are rejected, since they can decompress to any size. The server
does not support TLS. As with HTTP, use a proxy for TLS.

If gRPC's server ends by itself, the process stops as on SIGTERM and exits with status 1, so that it
is restarted.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import tempfile

import grpc

from service.grpc.listener import RelayListener
from service.grpc.methods import Methods
from service.grpc.streams import Streams
from service.inference.service import Service
from service.server.connection_limit import Connections, usable_limit
from service.server.listening import join, listen
from service.settings import Settings
from service.telemetry.logs import log

IDENTITY = 1
"""Bit mask of the allowed compression algorithms: only "identity", which means no compression."""
DISCONNECT = "ExecuteBatchError raised"
"""Beginning of the log message about a disconnect during a response. gRPC logs disconnects as
server errors."""
WATCH_SECONDS = 1.0
"""Interval at which gRPC's server is checked, in seconds. gRPC reports the end of its server only
after the end of all calls, or after this time."""
MAX_STREAMS = 128
"""Maximum number of concurrent RPCs per connection. Clients delay further RPCs."""


def _is_server_error(record: logging.LogRecord) -> bool:
    """Whether to log `record`, a message of gRPC. Disconnects of clients are not logged, because
    the `interceptor` logs each call in one line anyway."""
    return not str(record.msg).startswith(DISCONNECT)


class RpcServer:
    """Serves gRPC on `settings.grpc_port` from `start` to `stop`."""

    def __init__(self, service: Service, settings: Settings, version: str) -> None:
        """
        Args:
            service: The service that handles the calls.
            settings: The settings of this process.
            version: Version of the server, for its metadata.
        """
        self._service = service
        self._settings = settings
        self._version = version

    async def start(self) -> None:
        """Start gRPC's server, and listen on the port.

        Raises OSError if the port or the Unix socket is not available.
        """
        settings = self._settings
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_server_error)
        streams = Streams(self._service.uploads, settings.max_queue_size)
        self._server = grpc.aio.server(
            handlers=[Methods(self._service, self._version, streams).handler()],
            options=[
                ("grpc.max_receive_message_length", settings.max_upload_bytes),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.max_connection_idle_ms", 1000 * settings.keep_alive_timeout),
                ("grpc.http2.true_binary", 0),  # header values must be ASCII (`header_block`)
                ("grpc.http2.max_ping_strikes", 0),  # relays limit the rate of pings
                ("grpc.http2.bdp_probe", 0),  # probes make gRPC receive data before a handler reads
                ("grpc.compression_enabled_algorithms_bitset", IDENTITY),
            ],
        )
        try:
            # With several front ends, the supervisor has reserved the port, and all front ends
            # share it.
            shared = settings.workers > 1
            host, port = settings.host, settings.grpc_port or 0
            sockets = join(host, port) if shared else listen(host, port)
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
        self._watching = asyncio.create_task(self._watch())
        address = f"[{host}]" if ":" in host else host
        log.info("gRPC on %s:%d", address, sockets[0].getsockname()[1])

    async def stop(self, seconds: float) -> None:
        """Reject new RPCs, and wait up to `seconds` for the RPCs in progress. Then stop.

        If gRPC's server has ended by itself, the RPCs in progress are canceled, because the RPC
        that caused the end never finishes.
        """
        self._watching.cancel()
        self._listener.stop_accepting()
        await self._server.stop(0 if self._service.failed else seconds)
        self._listener.stop()
        self._folder.cleanup()

    async def _watch(self) -> None:
        """Stop the process if gRPC's server ends by itself."""
        error = None
        try:
            while await self._server.wait_for_termination(WATCH_SECONDS):
                pass
        except Exception as caught:  # noqa: BLE001  # the error that ended gRPC's server
            error = caught
        log.critical("gRPC's server has ended, and the process stops: %r", error)
        self._service.failed = True
        self._service.draining = True
        signal.raise_signal(signal.SIGTERM)
