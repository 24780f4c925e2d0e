"""/metrics on a port of its own, in a real process."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.server.connection_limit import METRICS_CONNECTIONS
from tests.e2e.process import PATIENCE, ROOT, SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow


def test_metrics_port_serves_metrics_only() -> None:
    """It has the metrics of the other port, does not count itself, and ends with the process."""
    with Server(*SCRIPTED, SHOAL_METRICS_PORT="0") as server:
        server.wait_until_ready()
        httpx.post(f"{server.url}/predict", files={"img": png(7)})
        assert httpx.get(f"{server.url}/metrics").status_code == 404
        with httpx.Client(base_url=server.address("metrics on")) as scraper:
            families = {
                family.name: family
                for family in text_string_to_metric_families(scraper.get("/metrics").text)
            }
            counts = {
                (sample.labels["route"], sample.labels["status"]): sample.value
                for sample in families["shoal_request_duration_seconds"].samples
                if sample.name.endswith("_count")
            }
            assert counts["/predict", "200"] == 1
            assert ("/metrics", "200") not in counts
            assert scraper.get("/predict").status_code == 404
            assert server.stop() == 0, "though a scraper's connection is open"


def test_metrics_port_bounds_its_connections() -> None:
    """Whatever `SHOAL_MAX_CONNECTIONS` is: further ones take the place of the oldest."""
    with (
        Server(*SCRIPTED, SHOAL_METRICS_PORT="0") as server,
        contextlib.ExitStack() as connections,
    ):
        server.wait_until_ready()
        url = httpx.URL(server.address("metrics on"))
        first, *_ = [
            connections.enter_context(socket.create_connection((url.host, url.port or 0)))
            for _ in range(METRICS_CONNECTIONS + 1)
        ]
        first.settimeout(PATIENCE)
        assert first.recv(1) == b""
        assert httpx.get(url.join("/metrics")).status_code == 200


def test_metrics_port_in_use_ends_the_process() -> None:
    """The process ends with status 3 if the port is in use."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = subprocess.run(
            [sys.executable, *SCRIPTED],
            cwd=ROOT,
            env={"SHOAL_PORT": "0", "SHOAL_METRICS_PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert run.returncode == 3
    assert f"metrics cannot listen on 127.0.0.1:{port}: Address already in use" in run.stdout
