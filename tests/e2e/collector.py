"""An OpenTelemetry collector that keeps the spans it receives: OTLP over HTTP, in a thread."""

from __future__ import annotations

import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PATIENCE = 30.0


class Collector:
    """A collector. `endpoint` is its URL, and `spans` are the spans so far, as in OTLP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # as http.server wants it
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                collector._take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def named(self, name: str) -> list[Any]:
        """Returns the spans of that name, in the order of their start."""
        return sorted(
            (span for span in self.spans if span.name == name),
            key=lambda span: span.start_time_unix_nano,
        )

    def wait_for(self, name: str, count: int) -> list[Any]:
        """Waits until there are `count` spans of that name."""
        end = time.monotonic() + PATIENCE
        while len(found := self.named(name)) < count:
            assert time.monotonic() < end, f"{len(found)} spans {name!r} of {count}"
            time.sleep(0.02)
        return found

    def _take(self, request: Any) -> None:
        for told in request.resource_spans:
            attributes = {a.key: a.value.string_value for a in told.resource.attributes}
            self.services.add(attributes["service.name"])
            for scope in told.scope_spans:
                self.spans += scope.spans
