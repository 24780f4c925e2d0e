"""Tests of `/metrics`, read with Prometheus' own parser."""

from __future__ import annotations

import asyncio
import shutil
import subprocess

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from batching import BatchReport
from model_store.device import GpuMemory
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.fakes import FakeEngine
from tests.service.conftest import connected, png

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(client: httpx.AsyncClient) -> Samples:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return parsed(response.text)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"shoal_{name}", frozenset(labels.items())]


async def test_metrics_count_each_request_once(client: httpx.AsyncClient) -> None:
    """Requests are counted by route and status, and refusals by their code."""
    for upload in png(7), png(3), b"hello":
        await client.post("/predict", files={"img": upload})
    for path in "/nope/1", "/nope/2":
        await client.get(path)
    samples = await scrape(client)
    count = "request_duration_seconds_count"
    assert value(samples, count, route="/predict", status="200") == 2
    assert value(samples, count, route="/predict", status="400") == 1
    assert value(samples, count, route="other", status="404") == 2, (
        "labels contain no path that a client sent"
    )
    assert value(samples, "refusals_total", code="bad_image") == 1
    assert value(samples, "refusals_total", code="not_found") == 2
    for stage, times in {"read": 3, "decode": 2, "queue": 2, "infer": 2}.items():
        assert value(samples, "stage_duration_seconds_count", stage=stage) == times


async def test_metrics_count_each_refused_image_of_a_batch_request(
    client: httpx.AsyncClient,
) -> None:
    """A request with two bad images is one answered request and two refusals."""
    files = [("img", upload) for upload in (png(7), b"hello", b"hello")]
    await client.post("/predict/batch", files=files)
    samples = await scrape(client)
    assert value(samples, "refusals_total", code="bad_image") == 2
    count = "request_duration_seconds_count"
    assert value(samples, count, route="/predict/batch", status="200") == 1


async def test_metrics_count_batches(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Items, batches and padding agree with the batches that the engine received."""
    engine.seconds = 0.02
    await asyncio.gather(*(client.post("/predict", files={"img": png(7)}) for _ in range(6)))
    samples = await scrape(client)
    padded = sum(next(b for b in (1, 2, 4, 8) if b >= size) - size for size in engine.batches)
    assert value(samples, "batch_size_count") == len(engine.batches)
    assert value(samples, "batch_size_sum") == sum(engine.batches) == 6
    assert value(samples, "padding_items_total") == padded
    assert value(samples, "items_total", outcome="answered") == 6
    assert value(samples, "batch_actual_to_predicted_ratio_count") == len(engine.batches)
    busy = value(samples, "engine_busy_seconds_total")
    assert 0.019 * len(engine.batches) <= busy < 1


async def test_metrics_show_the_current_state(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """A scrape shows the queue, batches in flight, expected durations and the model."""
    engine.seconds = 0.1
    first, *waiting = [
        asyncio.create_task(client.post("/predict", files={"img": png(7)})) for _ in range(4)
    ]
    await engine.called.wait()
    samples = await scrape(client)
    assert value(samples, "ready") == 1
    assert value(samples, "batches_in_flight") == 1
    assert value(samples, "queue_length") + sum(engine.batches) == 4
    assert all(value(samples, "batch_expected_seconds", bucket=bucket) > 0 for bucket in "1248")
    assert (
        value(samples, "model_info", model="fake", version="7", device="cpu", backend="mxnet") == 1
    )
    await asyncio.gather(first, *waiting)
    assert value(await scrape(client), "queue_length") == 0


def test_count_batch_counts_each_field_of_a_report() -> None:
    """Failures, cancellations, retries and lack of memory are counted as reported."""
    metrics = Metrics()
    for out_of_memory in False, True:
        metrics.count_batch(
            BatchReport(
                size=6,
                bucket=8,
                infer_seconds=0.2,
                predicted_seconds=0.1,
                answered=3,
                failed=2,
                gone=1,
                retries=4,
                out_of_memory=out_of_memory,
            )
        )
    samples = parsed(metrics.text().decode())
    outcomes = {o: value(samples, "items_total", outcome=o) for o in ("answered", "failed", "gone")}
    assert outcomes == {"answered": 6, "failed": 4, "gone": 2}
    assert value(samples, "padding_items_total") == 4
    assert value(samples, "batch_retries_total") == 8
    assert value(samples, "batches_out_of_memory_total") == 1
    assert value(samples, "batch_actual_to_predicted_ratio_sum") == 4
    assert value(samples, "batch_duration_seconds_sum") == 0.4


def test_end_request_counts_a_disconnect_as_cancellation() -> None:
    """A request whose client disconnected is a cancellation and not a refusal."""
    metrics = Metrics()
    metrics.begin_request()
    metrics.end_request("/predict", "499", 0.1, {"decode": 0.001}, "client_left")
    samples = parsed(metrics.text().decode())
    assert value(samples, "cancellations_total") == 1
    assert not [name for name, _ in samples if name == "shoal_refusals_total"]
    assert value(samples, "request_duration_seconds_sum", route="/predict", status="499") == 0.1


async def test_metrics_count_requests_in_flight(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """A request is in flight from its head to the end of its answer, and the scrape is one."""
    engine.seconds = 0.1
    asked = [asyncio.create_task(client.post("/predict", files={"img": png(7)})) for _ in range(3)]
    await engine.called.wait()
    assert value(await scrape(client), "requests_in_flight") == 4
    await asyncio.gather(*asked)
    await client.post("/predict", files={"img": b"hello"})
    assert value(await scrape(client), "requests_in_flight") == 1


async def test_metrics_count_batches_by_bucket(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """Batches are counted by the size that they were padded to."""
    files = [("img", png(red)) for red in range(8)]
    await client.post("/predict/batch", files=files)
    await client.post("/predict", files={"img": png(7)})
    samples = await scrape(client)
    assert engine.batches == [8, 1]
    assert {b: value(samples, "batches_total", bucket=b) for b in "18"} == {"1": 1, "8": 1}
    assert value(samples, "stage_duration_seconds_count", stage="assemble") == 2


async def test_metrics_show_gpu_memory(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """GPU memory is shown where the engine reports it."""
    assert not [name for name, _ in await scrape(client) if "gpu" in name]
    engine.gpu_memory = GpuMemory(free=3 * 2**30, total=8 * 2**30)
    samples = await scrape(client)
    assert value(samples, "gpu_memory_bytes", state="free") == 3 * 2**30
    assert value(samples, "gpu_memory_bytes", state="used") == 5 * 2**30


async def test_metrics_port_serves_metrics_alone(engine: FakeEngine) -> None:
    """With a metrics port, the main port has no /metrics and does not describe it."""
    async with connected(Settings(metrics_port=0), engine) as client:
        assert (await client.get("/metrics")).status_code == 404
        assert "/metrics" not in (await client.get("/openapi.json")).json()["paths"]


async def test_metrics_pass_promtool(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Prometheus' own linter accepts the metrics."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: apt-get install prometheus")
    engine.gpu_memory = GpuMemory(free=1, total=2)
    for upload in png(7), b"hello":
        await client.post("/predict", files={"img": upload})
    text = (await client.get("/metrics")).content
    check = [promtool, "check", "metrics"]
    run = await asyncio.to_thread(subprocess.run, check, input=text, capture_output=True)
    assert (run.returncode, run.stdout + run.stderr) == (0, b"")


async def test_metric_names_follow_conventions(client: httpx.AsyncClient) -> None:
    """Names have the prefix `shoal_`, base units, and `_total` for counters."""
    await client.post("/predict", files={"img": png(7)})
    families = list(text_string_to_metric_families((await client.get("/metrics")).text))
    ours = [family for family in families if not family.name.startswith(("process_", "python_"))]
    for family in ours:
        assert family.name.startswith("shoal_") and family.documentation
        if family.type == "counter":
            assert all(s.name.endswith(("_total", "_created")) for s in family.samples)
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_ratio", "_size"))
    assert {"process_resident_memory_bytes", "process_open_fds"} < {f.name for f in families}
