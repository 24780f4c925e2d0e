"""Start, stop, and what happens to requests in between, in real processes."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.process import REAL, ROOT, SCRIPTED, Hold, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow
HORSE = png(7)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stop_answers_requests_in_flight(number: int, hold: Hold) -> None:
    """Requests in flight when the signal arrives are answered, and the exit status is 0."""
    with Server(*SCRIPTED, ENGINE_HELD=str(hold), SHOAL_REQUEST_TIMEOUT="60") as server:
        server.wait_until_ready()
        async with httpx.AsyncClient(timeout=30) as client:
            requests = [
                asyncio.create_task(client.post(f"{server.url}/predict", files={"img": HORSE}))
                for _ in range(32)
            ]
            await server.wait_until("shoal_batches_in_flight", 1)
            await server.wait_until("shoal_queue_length", lambda: 32 - sum(server.batches()))
            stopping = asyncio.create_task(asyncio.to_thread(server.stop, number))
            await asyncio.to_thread(server.wait_for_log, "Shutting down")
            hold.end()
            status = await stopping
            responses = await asyncio.gather(*requests)
    assert status == 0
    assert [response.status_code for response in responses] == [200] * 32


def test_stop_while_the_model_loads() -> None:
    """A signal during the start ends the process with status 0."""
    with Server(*REAL) as server:
        assert server.stop() == 0


def test_stop_does_not_wait_for_an_engine_that_hangs() -> None:
    """Waiting requests get an error, and the process ends within its timeout with status 1."""
    hung = {"ENGINE_SECONDS": "1000", "SHOAL_REQUEST_TIMEOUT": "2000"}
    with Server(*SCRIPTED, **hung, SHOAL_SHUTDOWN_TIMEOUT="1") as server:
        server.wait_until_ready()
        with ThreadPoolExecutor(1) as client:
            waiting = client.submit(
                httpx.post, f"{server.url}/predict", files={"img": HORSE}, timeout=30
            )
            server.wait_for_log("batch")
            started = time.monotonic()
            assert server.stop() == 1
            assert time.monotonic() - started < 30
            assert waiting.result().json()["code"] == "cut_off"
        assert "did not stop within the shutdown timeout" in server.log()[-1]["message"]


def test_dead_engine_ends_the_process() -> None:
    """If a batch never returns, all requests get an error and the process ends with status 4."""
    dies = {"ENGINE_SECONDS": "1000", "ENGINE_WARM_UP_SECONDS": "0.001", "ENGINE_DEAD_AFTER": "2"}
    with Server(*SCRIPTED, **dies, SHOAL_REQUEST_TIMEOUT="60", SHOAL_DRAIN_DELAY="1") as server:
        server.wait_until_ready()
        with ThreadPoolExecutor(4) as clients:

            def post() -> httpx.Response:
                return httpx.post(f"{server.url}/predict", files={"img": HORSE}, timeout=30)

            waiting = [clients.submit(post) for _ in range(4)]
            server.wait_for_log("the engine is dead")
            assert httpx.get(f"{server.url}/healthz").json()["code"] == "not_live"
            assert httpx.get(f"{server.url}/readyz").status_code == 503
            assert post().json()["code"] == "engine_dead"
            for response in (future.result() for future in waiting):
                told = response.json()["code"]
                assert response.status_code == 503
                assert told in ("engine_dead", "deadline_unreachable")
                assert int(response.headers["retry-after"]) >= 1
        started = time.monotonic()
        assert server.wait() == 4
        assert time.monotonic() - started < 30


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_stalled_engine_is_not_ready_until_its_batch_ends(workers: str, hold: Hold) -> None:
    """Readiness probes and `shoal_ready` report a stalled engine while the process is live."""
    stalls = {"ENGINE_HELD": str(hold), "ENGINE_STALLED_AFTER": "1", "SHOAL_WORKERS": workers}
    with Server(*SCRIPTED, **stalls, SHOAL_REQUEST_TIMEOUT="120") as server:
        server.wait_until_ready()
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            waiting = asyncio.create_task(client.post("/predict", files={"img": HORSE}))
            await server.wait_until("shoal_batches_in_flight", 1)
            assert (await client.get("/readyz")).status_code == 200
            await server.wait_until("shoal_ready", 0)
            stalled = await client.get("/readyz")
            assert (stalled.status_code, stalled.json()["code"]) == (503, "engine_stalled")
            assert stalled.headers["retry-after"] == "1"
            for path in "/v2/health/ready", "/v2/models/fake/ready":
                assert (await client.get(path)).status_code == 503
            assert (await client.get("/healthz")).status_code == 200
            hold.end()
            assert (await waiting).status_code == 200
            await server.wait_until("shoal_ready", 1)
            assert (await client.get("/readyz")).status_code == 200


def test_model_that_does_not_load_ends_the_process() -> None:
    """The process ends with status 1, and the log says why."""
    with Server(*SCRIPTED, ENGINE_ERROR="load") as server:
        assert server.wait() == 1
        assert server.log()[-1]["message"].endswith("the engine was told to fail")


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"SHOAL_MODEL": "unknown"}, "the store holds cifar_resnet20_v1"),
        ({"SHOAL_MODEL_VERSION": "999"}, "of version '999'"),
        ({"SHOAL_DEVICE": "gpu:9"}, "device gpu:9 was requested"),
    ],
)
def test_wrong_model_or_device_ends_the_process(environment: dict[str, str], told: str) -> None:
    """The process ends with status 1 and one line in the log."""
    with Server(*REAL, **environment) as server:
        assert server.wait() == 1
        last = server.log()[-1]
        assert told in last["message"] and "traceback" not in last


def test_wrong_settings_end_the_process() -> None:
    """Each wrong setting is a line on standard error; the status is 2 and nothing is started."""
    run = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=ROOT,
        env={"SHOAL_PORT": "99999", "SHOAL_DEVICE": "abacus"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and run.stdout == ""
    assert [line.partition("=")[0] for line in run.stderr.splitlines()] == [
        "SHOAL_PORT",
        "SHOAL_DEVICE",
    ]


def test_port_in_use_ends_the_process() -> None:
    """The log names the address, and the status is 3."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = subprocess.run(
            [sys.executable, *SCRIPTED],
            cwd=ROOT,
            env={"SHOAL_PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert run.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in run.stdout
