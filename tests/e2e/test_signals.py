"""Signals at any moment, in real processes."""

from __future__ import annotations

import asyncio
import pathlib
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from benchmarks.processes import started
from tests.e2e.process import PATIENCE, ROOT, SCRIPTED, Hold, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow
HORSE = png(7)
ONE, TWO = "one-key-of-many-letters", "another-key-of-many-letters"


def handles(pid: int, number: int) -> bool:
    """Does the process do something of its own about this signal?"""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def wait_until_handled(pid: int, number: int, ours: int = signal.SIGTERM) -> None:
    """Python itself handles SIGINT from its first moment: `ours` tells that we do."""
    end = time.monotonic() + PATIENCE
    while not (handles(pid, number) and handles(pid, ours)):
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_imports_ends_the_process(number: int) -> None:
    """While modules are imported, the process ends with status 0 and no output."""
    with started(
        [sys.executable, "-m", "service"], cwd=ROOT, stdout=-1, stderr=-1, text=True
    ) as process:
        wait_until_handled(process.pid, number)
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == 0


def test_sighup_during_imports_does_not_end_the_process() -> None:
    """SIGHUP does not end a process that is starting."""
    with started(
        [sys.executable, "-m", "service"], cwd=ROOT, stdout=-1, stderr=-1, text=True
    ) as process:
        wait_until_handled(process.pid, signal.SIGTERM)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == 0


async def test_repeated_sigterm_answers_requests_in_flight(hold: Hold) -> None:
    """Further SIGTERMs change nothing: requests in flight are answered."""
    with Server(*SCRIPTED, ENGINE_HELD=str(hold), SHOAL_REQUEST_TIMEOUT="60") as server:
        server.wait_until_ready()
        async with httpx.AsyncClient(timeout=30) as client:
            requests = [
                asyncio.create_task(client.post(f"{server.url}/predict", files={"img": HORSE}))
                for _ in range(8)
            ]
            await server.wait_until("shoal_batches_in_flight", 1)
            await server.wait_until("shoal_queue_length", lambda: 8 - sum(server.batches()))
            for _ in range(3):
                server.send(signal.SIGTERM)
                await asyncio.sleep(0.1)
            hold.end()
            status = await asyncio.to_thread(server.wait)
            responses = await asyncio.gather(*requests)
    assert status == 0
    assert [response.status_code for response in responses] == [200] * 8


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_second_ctrl_c_ends_the_process_immediately(first: int) -> None:
    """SIGINT after a first signal ends the process, even if the engine hangs."""
    hung = {"ENGINE_SECONDS": "1000", "SHOAL_REQUEST_TIMEOUT": "2000"}
    with Server(*SCRIPTED, **hung, SHOAL_SHUTDOWN_TIMEOUT="60") as server:
        server.wait_until_ready()
        with ThreadPoolExecutor(1) as client:
            waiting = client.submit(
                httpx.post, f"{server.url}/predict", files={"img": HORSE}, timeout=30
            )
            server.wait_for_log("batch")
            server.send(first)
            server.wait_for_log("Shutting down")
            started = time.monotonic()
            assert server.stop(signal.SIGINT) == 130
            assert time.monotonic() - started < 30
            assert isinstance(waiting.exception(), httpx.HTTPError)


def test_sighup_reads_the_keys(tmp_path: pathlib.Path) -> None:
    """SIGHUP reads the file of keys again; an unusable file changes nothing."""
    file = tmp_path / "keys"
    file.write_text(ONE)
    with Server(*SCRIPTED, SHOAL_API_KEYS_FILE=str(file)) as server:
        server.wait_until_ready()

        def status(key: str) -> int:
            headers = {"x-api-key": key}
            url = f"{server.url}/predict"
            return httpx.post(url, files={"img": HORSE}, headers=headers).status_code

        assert (status(ONE), status(TWO)) == (200, 401)
        file.write_text(TWO)
        server.send(signal.SIGHUP)
        server.wait_for_log("keys read")
        assert (status(ONE), status(TWO)) == (401, 200)
        file.write_text("")
        server.send(signal.SIGHUP)
        server.wait_for_log("API keys were not reloaded")
        assert (status(ONE), status(TWO)) == (401, 200)
        assert server.stop() == 0


def test_sighup_loads_the_newest_version(tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    """SIGHUP loads the version that a start would; one that cannot be loaded changes nothing."""
    store = tmp_path / "store"
    versions = store / model.parent.name
    shutil.copytree(model, versions / model.name)
    with Server(*SCRIPTED, SHOAL_MODEL_STORE=str(store)) as server:
        server.wait_until_ready()

        def serves() -> str:
            version: str = httpx.get(f"{server.url}/readyz").json()["model"]["version"]
            return version

        assert serves() == "7"  # the scripted engine's own
        server.send(signal.SIGHUP)
        assert server.wait_for_log("reloaded")["version"] == serves() == model.name
        (versions / "99").mkdir()
        (versions / "99" / "manifest.json").write_text("{")
        server.send(signal.SIGHUP)
        server.wait_for_log("the model was not reloaded")
        assert serves() == model.name
        assert httpx.post(f"{server.url}/predict", files={"img": HORSE}).status_code == 200
        assert server.stop() == 0
