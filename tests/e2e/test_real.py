"""The service as it ships: the real network behind real HTTP."""

from __future__ import annotations

import asyncio
import io
import pathlib
import re
import time
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model_store.params import read_params
from tests.e2e.process import REAL, Server
from tests.reference import probabilities

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
SANE = {200, 400, 413, 415, 422}


@pytest.fixture(scope="module")
def images() -> Any:
    """64 images of coloured squares, from coarse to fine."""
    random = np.random.default_rng(12)
    sizes = [2 ** (1 + number % 5) for number in range(64)]
    squares = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in sizes]
    return np.stack([s.repeat(32 // len(s), axis=0).repeat(32 // len(s), axis=1) for s in squares])


@pytest.fixture(scope="module")
def expected(model: pathlib.Path, images: Any) -> Any:
    return probabilities(read_params(model / "net.params"), images)


async def predict(client: httpx.AsyncClient, url: str, image: Any) -> Any:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    response = await client.post(f"{url}/predict", files={"img": out.getvalue()})
    assert response.status_code == 200, response.text
    return list(response.json()["probabilities"].values())


async def batches(client: httpx.AsyncClient, url: str) -> int:
    """How many have been computed."""
    (line,) = re.findall(
        r"^shoal_batch_size_count (\S+)$", (await client.get(f"{url}/metrics")).text, re.MULTILINE
    )
    return int(float(line))


def test_start_takes_bounded_cpu_time(calibrated: pathlib.Path) -> None:
    """The process is ready after at most five CPU seconds, or eight with AMX."""
    for store in ({}, {"SHOAL_MODEL_STORE": str(calibrated.parents[1]), "SHOAL_PRECISION": "int8"}):
        with Server(*REAL, **store) as server:
            server.wait_until_ready()
            told = httpx.get(f"{server.url}/readyz").json()["precision_reason"]
            assert server.cpu_seconds() < (8 if "AMX" in told else 5)


async def test_single_predictions_match_numpy(real: Server, images: Any, expected: Any) -> None:
    """One at a time, predictions are what NumPy computes from the description in the paper."""
    async with httpx.AsyncClient() as client:
        for image, wanted in zip(images[:50], expected, strict=False):
            served = await predict(client, real.url, image)
            assert np.abs(np.asarray(served) - wanted).max() < TOLERANCE


@pytest.mark.parametrize("size", [2, 3, 7, 16, 33, 64])
async def test_batched_predictions_match_numpy(
    real: Server, images: Any, expected: Any, size: int
) -> None:
    """In batches, each client gets the prediction for its own image."""
    async with httpx.AsyncClient(timeout=30) as client:
        before = await batches(client, real.url)
        requests = [predict(client, real.url, image) for image in images[:size]]
        served = await asyncio.gather(*requests)
        computed = await batches(client, real.url) - before
    assert computed < size or size < 8, "they were computed together"
    assert np.abs(np.asarray(served) - expected[:size]).max() < TOLERANCE


def test_readyz_names_the_model(real: Server) -> None:
    """`/readyz` names the model and the version that serve."""
    body = httpx.get(f"{real.url}/readyz").json()
    assert body["model"] == {"name": "cifar_resnet20_v1", "version": "1"}
    assert body["device"] == "cpu"
    assert list(body["latency"]) == ["1", "2", "4", "8", "16", "32", "64"]


def test_horses_are_classified_as_horses(real: Server, data: pathlib.Path) -> None:
    """Most photos of horses get the class horse."""
    seen = []
    for path in sorted((data / "photos").glob("horse_*")):
        with path.open("rb") as photo:
            seen.append(httpx.post(f"{real.url}/predict", files={"img": photo}).json()["class"])
    assert seen.count("horse") > len(seen) / 2


def test_unusual_files_are_answered_or_rejected(real: Server, data: pathlib.Path) -> None:
    """Each file gets an answer or a clear error, quickly, and memory stays bounded."""
    files = sorted((data / "odd").glob("*/*"))
    assert len(files) > 200
    for path in files:
        started = time.monotonic()
        with path.open("rb") as upload:
            response = httpx.post(f"{real.url}/predict", files={"img": upload}, timeout=30)
        assert response.status_code in SANE, (path.name, response.text)
        assert time.monotonic() - started < 10, path.name
    status = pathlib.Path(f"/proc/{real.pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0])
    assert peak < 1_500_000, f"{peak} kB at its peak"
