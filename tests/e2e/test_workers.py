"""Several processes: what becomes of requests when one of them dies or is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import signal
import socket
import stat
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import InferenceServerClient, InferInput

from benchmarks.processes import is_running, wait_until_ended
from service.workers.process import ARGUMENT
from tests.e2e.process import PATIENCE, REAL, SCRIPTED, Hold, Server, wait_until_ready
from tests.service.conftest import png

pytestmark = pytest.mark.slow
HORSE = png(7)
FRONT_ENDS = "front-end-1", "front-end-2"
LONG = {"SHOAL_REQUEST_TIMEOUT": "600"}


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Server]:
    """Two front ends, both of them up and the model loaded."""
    with Server(*arguments, SHOAL_WORKERS="2", **environment) as server:
        server.wait_for_log("Uvicorn running")
        server.wait_until_ready()
        yield server


@contextlib.asynccontextmanager
async def clients() -> AsyncIterator[httpx.AsyncClient]:
    """As many connections as there are requests under way."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=30, limits=limits) as client:
        yield client


def post(client: httpx.AsyncClient, server: Server) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.post(f"{server.url}/predict", files={"img": HORSE}))


def connections(pid: int) -> int:
    """Sockets that a process has open."""
    found = 0
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found += os.readlink(link).startswith("socket:")
    return found


def has_mxnet(pid: int) -> bool:
    return "libmxnet" in pathlib.Path(f"/proc/{pid}/maps").read_text()


async def settled(server: Server) -> None:
    """Waits until every front end is ready."""
    assert await asyncio.to_thread(wait_until_ready, server.url, server.running, in_a_row=12)


async def scraped(client: httpx.AsyncClient, server: Server) -> dict[str, float]:
    """Totals over all labels, but of routes only /predict."""
    text = (await client.get(f"{server.url}/metrics")).text
    found: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("route", "/predict") == "/predict":
                found[sample.name] += sample.value
    return dict(found)


@pytest.mark.mxnet
async def test_only_the_engine_process_has_mxnet() -> None:
    """Every front end answers predictions and probes, and only the engine process loads MXNet."""
    with serving(*REAL) as server:
        processes = server.processes() | {"supervisor": server.pid}
        with_mxnet = {name for name, pid in processes.items() if has_mxnet(pid)}
        async with clients() as client:
            answers = await asyncio.gather(*(post(client, server) for _ in range(16)))
            probes = [
                await client.get(f"{server.url}/{path}")
                for path in ("healthz", "readyz", "v2/health/ready", "metrics")
                for _ in range(4)
            ]
        assert server.stop() == 0
    assert processes.keys() == {"supervisor", "engine", *FRONT_ENDS}
    assert with_mxnet == {"engine"}
    assert {answer.status_code for answer in (*answers, *probes)} == {200}
    assert {answer.json()["model"]["name"] for answer in answers} == {"cifar_resnet20_v1"}


async def test_front_ends_share_one_queue(hold: Hold) -> None:
    """Requests of both front ends form joint batches, leave with their clients, and count once."""
    held = {"ENGINE_HELD": str(hold), "ENGINE_WARM_UP_SECONDS": "2"}
    with serving(*SCRIPTED, **held, **LONG) as server:
        idle = {name: connections(server.processes()[name]) for name in FRONT_ENDS}
        async with clients() as client:
            first = post(client, server)
            await server.wait_until("shoal_batches_in_flight", 1)
            waiting = [post(client, server) for _ in range(24)]
            await server.wait_until("shoal_queue_length", 24)
            for name in FRONT_ENDS:
                assert connections(server.processes()[name]) > idle[name], "it has no client"
            for task in waiting[16:]:
                task.cancel()
            await server.wait_until("shoal_queue_length", 16)
            hurried = await client.post(
                f"{server.url}/predict", files={"img": HORSE}, headers={"X-Request-Timeout": "0.5"}
            )
            hold.end()
            answers = await asyncio.gather(first, *waiting[:16])
            totals = [await scraped(client, server) for _ in range(6)]
        assert server.stop() == 0
    assert (hurried.status_code, hurried.json()["code"]) == (503, "deadline_unreachable")
    assert int(hurried.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in answers] == [200] * 17
    assert server.batches() == [1, 8, 8]
    for found in totals:
        assert found["shoal_batch_size_sum"] == 17 == found["shoal_items_total"]
        assert found["shoal_batch_size_count"] == 3
        assert found["shoal_cancellations_total"] == 8
        assert found["shoal_request_duration_seconds_count"] == 17 + 8 + 1


def test_front_ends_share_the_other_ports() -> None:
    """The metrics port and the gRPC port are shared by the front ends and closed to others."""
    with serving(*SCRIPTED, SHOAL_METRICS_PORT="0", SHOAL_GRPC_PORT="0") as server:
        logged = [record["message"] for record in server.log()]
        scrapes = {line for line in logged if line.startswith("metrics on")}
        calls = {line for line in logged if line.startswith("gRPC on")}
        assert len(scrapes) == len(calls) == 1
        (scrape,), (call,) = scrapes, calls
        host, _, port = call.split()[-1].rpartition(":")
        with pytest.raises(OSError, match="in use"):
            socket.create_server((host, int(port)))
        image = InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([HORSE], dtype=object))
        for _ in range(6):  # connections of their own
            options = [("grpc.use_local_subchannel_pool", 1)]
            with InferenceServerClient(f"{host}:{port}", channel_args=options) as client:
                assert client.infer("fake", [image]).as_numpy("class")[0] == b"horse"
            text = httpx.get(f"{scrape.split()[-1]}/metrics").text
        assert 'shoal_items_total{outcome="answered"} 6.0' in text
        assert httpx.get(f"{server.url}/metrics").status_code == 404
        assert server.stop() == 0


async def test_sighup_reloads_once_for_all(shipped: pathlib.Path) -> None:
    """On SIGHUP every front end reloads, and the model is loaded once."""
    with serving(*SCRIPTED) as server:
        before = server.processes()
        async with clients() as client:
            assert (await post(client, server)).json()["model"]["version"] == "7", "a fake's"
            os.kill(server.pid, signal.SIGHUP)
            for _ in FRONT_ENDS:
                await asyncio.to_thread(server.wait_for_log, "reloaded")
            answers = await asyncio.gather(*(post(client, server) for _ in range(16)))
        assert server.processes() == before
        messages = [record["message"] for record in server.log()]
        assert server.stop() == 0
    assert {answer.json()["model"]["version"] for answer in answers} == {shipped.name}, (
        "the store's"
    )
    assert messages.count("switched") == 1


def test_sighup_never_kills_a_starting_process() -> None:
    """Each process ignores SIGHUP from its first moment on."""
    minded: dict[str, bool] = {}
    with serving(*SCRIPTED) as server:
        killed = server.processes()["front-end-1"]
        os.kill(killed, signal.SIGKILL)
        end = time.monotonic() + PATIENCE
        while pathlib.Path(f"/proc/{killed}").exists() and time.monotonic() < end:
            time.sleep(0.001)
        while len(minded) < 3 and time.monotonic() < end:
            for process in pathlib.Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    told = (process / "cmdline").read_bytes().split(b"\0")
                    status = (process / "status").read_text()
                    if f"\nPPid:\t{server.pid}\n" in status and ARGUMENT.encode() in told:
                        masks = (
                            status.partition(name)[2].split()[0] for name in ("SigIgn:", "SigCgt:")
                        )
                        deaf_or_heard = [int(mask, 16) >> (signal.SIGHUP - 1) & 1 for mask in masks]
                        minded.setdefault(process.name, any(deaf_or_heard))
        assert server.stop() == 0
    assert len(minded) == 3 and all(minded.values())


async def test_killed_engine_is_replaced(hold: Hold) -> None:
    """Waiting requests get 503, another engine is started, and counters keep their values."""
    environment = {"ENGINE_HELD": str(hold), "ENGINE_LOAD_HELD": str(hold), **LONG}
    hold.end()
    with serving(*SCRIPTED, **environment) as server:
        hold.begin()
        async with clients() as client:
            waiting = [post(client, server) for _ in range(16)]
            await server.wait_until("shoal_batches_in_flight", 1)
            before = server.processes()
            os.kill(before["engine"], signal.SIGKILL)
            refused = await asyncio.gather(*waiting, post(client, server))
            assert (await client.get(f"{server.url}/readyz")).status_code == 503
            assert (await client.get(f"{server.url}/healthz")).status_code == 200
            hold.end()
            await settled(server)
            assert (await post(client, server)).status_code == 200
            total = await scraped(client, server)
        after = server.processes()
        assert server.stop() == 0
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"] == "1"
    assert after.pop("engine") != before.pop("engine") and after == before
    assert total["shoal_request_duration_seconds_count"] == 18
    assert total["shoal_refusals_total"] >= 17 and total["shoal_items_total"] == 1


async def test_engine_that_fails_on_everything_is_replaced() -> None:
    """After several failed batches another engine process is started."""
    with serving(*SCRIPTED, ENGINE_ERROR="the fan is off") as server:
        before = server.processes()["engine"]
        async with clients() as client:
            answers = [await post(client, server) for _ in range(5)]
        server.wait_for_log("exits and is restarted")
        server.wait_for_log("ready")
        assert server.processes()["engine"] != before
        assert server.stop() == 0
    assert {answer.json()["code"] for answer in answers} == {"engine_failed"}


async def test_killed_front_end_is_replaced(hold: Hold) -> None:
    """Only its own connections and requests are lost, and another one takes its place."""
    with serving(*SCRIPTED, ENGINE_HELD=str(hold), **LONG) as server:
        async with clients() as client:
            waiting = [post(client, server) for _ in range(24)]
            await server.wait_until("shoal_batches_in_flight", 1)
            await server.wait_until("shoal_queue_length", lambda: 24 - sum(server.batches()))
            before = server.processes()
            os.kill(before[FRONT_ENDS[0]], signal.SIGKILL)
            async with asyncio.timeout(60):
                length = queued = 24 - sum(server.batches())
                while length == queued:
                    # KeyError: another front end, which has no link to the engine yet
                    with contextlib.suppress(httpx.TransportError, KeyError):
                        length = int((await scraped(client, server))["shoal_queue_length"])
            hold.end()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            answered = [one for one in outcomes if isinstance(one, httpx.Response)]
            await settled(server)
            again = await asyncio.gather(*(post(client, server) for _ in range(16)))
            total = await scraped(client, server)
        after = server.processes()
        assert server.stop() == 0
    assert 0 < len(answered) < 24, "both had some"
    assert {answer.status_code for answer in (*answered, *again)} == {200}
    assert all(isinstance(one, httpx.Response | httpx.TransportError) for one in outcomes)
    assert sum(server.batches()) <= len(answered) + 16 + 8, "but for the batch that was under way"
    assert total["shoal_request_duration_seconds_count"] == len(answered) + 16
    assert total["shoal_requests_in_flight"] == 1, "the scrape; those of the dead are no more"
    assert after.pop(FRONT_ENDS[0]) != before.pop(FRONT_ENDS[0]) and after == before


async def test_killed_processes_under_load() -> None:
    """Every request is answered, gets an error, or loses its connection to a killed front end."""
    outcomes: list[tuple[str, float]] = []
    leaving = False

    async def ask(server: Server) -> None:
        async with httpx.AsyncClient(timeout=30) as client:  # keeps its connection
            while not leaving:
                asked = time.monotonic()
                try:
                    answer = await client.post(f"{server.url}/predict", files={"img": HORSE})
                    told = answer.json()
                    outcome = told.get("code") or told["class"]
                except httpx.TransportError:
                    outcome = "lost"
                outcomes.append((outcome, time.monotonic() - asked))

    with serving(*SCRIPTED, ENGINE_SECONDS="0.01", ENGINE_LOAD_SECONDS="0.5") as server:
        load = [asyncio.create_task(ask(server)) for _ in range(12)]
        for name in ("engine", FRONT_ENDS[1], "engine"):
            await asyncio.sleep(0.3)
            before = server.processes()[name]
            os.kill(before, signal.SIGKILL)
            async with asyncio.timeout(30):
                while server.processes()[name] == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await settled(server)
        leaving = True
        await asyncio.gather(*load)
        async with clients() as client:
            last = await asyncio.gather(*(post(client, server) for _ in range(16)))
        assert server.stop() == 0
    told = Counter(outcome for outcome, _ in outcomes)
    assert told.keys() <= {"horse", "not_ready", "deadline_unreachable", "lost"}
    assert told["horse"] > 50 and told["not_ready"] > 0
    assert told["lost"] <= 12, "at most what a front end had"
    assert max(seconds for _, seconds in outcomes) < 20, "on a machine with other work"
    assert {answer.status_code for answer in last} == {200}


async def test_killed_supervisor_leaves_nothing(tmp_path: pathlib.Path) -> None:
    """No process and no folder is left, however busy the processes are."""
    with serving(*SCRIPTED, ENGINE_SECONDS="30", TMPDIR=str(tmp_path), **LONG) as server:
        pids = server.processes().values()
        (folder,) = os.listdir(tmp_path)
        assert stat.S_IMODE(os.stat(tmp_path / folder).st_mode) == 0o700
        async with clients() as client:
            waiting = [post(client, server) for _ in range(16)]
            await server.wait_until("shoal_batches_in_flight", 1)
            os.kill(server.pid, signal.SIGKILL)
            assert await asyncio.to_thread(wait_until_ended, pids, PATIENCE)
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    answers = [one for one in outcomes if isinstance(one, httpx.Response)]
    assert {answer.json()["code"] for answer in answers} <= {"not_ready"}, "the engine went first"
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("everybody", [True, False], ids=["everybody", "the supervisor"])
async def test_stop_answers_requests_in_flight(everybody: bool, hold: Hold) -> None:
    """Requests in flight are answered and all processes end, also if each gets the signal."""
    with serving(*SCRIPTED, ENGINE_HELD=str(hold), **LONG) as server:
        async with clients() as client:
            requests = [post(client, server) for _ in range(32)]
            await server.wait_until("shoal_batches_in_flight", 1)
            await server.wait_until("shoal_queue_length", lambda: 32 - sum(server.batches()))
            for pid in server.processes().values() if everybody else ():
                os.kill(pid, signal.SIGTERM)
            server.send(signal.SIGTERM)
            await asyncio.to_thread(server.wait_for_log, "stopping")
            hold.end()
            status = await asyncio.to_thread(server.wait)
            responses = await asyncio.gather(*requests)
    assert status == 0
    assert [response.status_code for response in responses] == [200] * 32
    assert not any(map(is_running, server.processes().values()))


async def test_second_ctrl_c_ends_all_processes_immediately() -> None:
    """After the first SIGINT no connection is accepted; the second ends all processes."""
    with serving(*SCRIPTED, ENGINE_SECONDS="30", **LONG) as server:
        async with clients() as client:
            waiting = [post(client, server) for _ in range(4)]
            await server.wait_until("shoal_batches_in_flight", 1)
            os.kill(server.pid, signal.SIGINT)
            await asyncio.to_thread(server.wait_for_log, "stopping")
            async with asyncio.timeout(60):
                with contextlib.suppress(httpx.ConnectError):
                    while True:
                        await client.get(f"{server.url}/healthz")
            began = time.monotonic()
            assert await asyncio.to_thread(server.stop, signal.SIGINT) == 130
            assert time.monotonic() - began < 20
            await asyncio.gather(*waiting, return_exceptions=True)
    assert not any(map(is_running, server.processes().values()))


def test_model_that_does_not_load_ends_the_service() -> None:
    """The service ends with status 1 without another attempt, and the log says why."""
    with Server(*SCRIPTED, SHOAL_WORKERS="2", ENGINE_ERROR="load") as server:
        assert server.wait() == 1
        messages = [record["message"] for record in server.log()]
        assert sum(message.endswith("the engine was told to fail") for message in messages) == 1
        assert not any(map(is_running, server.processes().values()))
