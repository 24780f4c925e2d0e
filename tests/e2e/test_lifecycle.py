"""Start, stop, and what happens to requests in between, in real processes."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from tests.e2e.process import REAL, ROOT, SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow
HORSE = png(7)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stop_loses_nothing(number: int) -> None:
    """Requests in flight when the signal arrives are answered; the process ends with 0."""
    with Server(*SCRIPTED, ENGINE_SECONDS="0.3") as server:
        server.wait_until_ready()
        async with httpx.AsyncClient(timeout=30) as client:
            requests = [
                asyncio.create_task(client.post(f"{server.url}/predict", files={"img": HORSE}))
                for _ in range(32)
            ]
            await asyncio.sleep(0.25)  # all have arrived, the first batch is being computed
            status = await asyncio.to_thread(server.stop, number)
            responses = await asyncio.gather(*requests)
    assert status == 0
    assert [response.status_code for response in responses] == [200] * 32


def test_stop_while_loading() -> None:
    """A signal during start-up ends the process cleanly too."""
    with Server(*REAL) as server:
        assert server.stop() == 0


def test_a_model_that_does_not_load_ends_the_process() -> None:
    """No process lingers that can never be ready; the log says why."""
    with Server(*SCRIPTED, ENGINE_ERROR="load") as server:
        assert server.wait() == 1
        assert server.log()[-1]["message"].endswith("the engine was told to fail")


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"SHOAL_MODEL": "unknown"}, "it holds cifar_resnet20_v1"),
        ({"SHOAL_MODEL_VERSION": "999"}, "No such file"),
        ({"SHOAL_DEVICE": "gpu:9"}, "device gpu:9 was asked for"),
    ],
)
def test_a_wrong_model_or_device(environment: dict[str, str], told: str) -> None:
    """One clear line and exit status 1."""
    with Server(*REAL, **environment) as server:
        assert server.wait() == 1
        last = server.log()[-1]
        assert told in last["message"] and "traceback" not in last


def test_a_wrong_setting() -> None:
    """One line a setting on standard error, exit status 2, before anything is started."""
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


def test_a_port_in_use() -> None:
    """The log says which address is taken."""
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
    assert f"'127.0.0.1', {port}" in run.stdout and "address already in use" in run.stdout
