"""Measures the whole service over HTTP, with several front ends."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
import urllib.request
from collections.abc import Sequence
from typing import Any

from benchmarks.endpoint import ANSWER_TIMEOUT, SMALL, Endpoint
from benchmarks.gpu.subject import Subject
from benchmarks.servers import module, serving
from shoal.load import processes
from shoal.load.generator import Job
from shoal.load.report import summarize

CONNECTIONS = 64
"""Number of connections for each front end."""
WARM_UP = 1.0
"""Seconds before each measurement."""


def requests(subject: Subject, counts: Sequence[int], seconds: float) -> dict[str, Any]:
    """Measures the requests per second with several numbers of front ends.

    Args:
        subject: What is measured. The precision is the lowest that it offers.
        counts: Numbers of front ends (the setting `workers`).
        seconds: Length of each measurement.
    """
    return {str(count): _measure(subject, count, seconds) for count in counts}


def _measure(subject: Subject, workers: int, seconds: float) -> dict[str, Any]:
    settings = {
        "SHOAL_BACKEND": "onnxruntime",
        "SHOAL_DEVICE": subject.device.name,
        "SHOAL_PRECISION": subject.precisions[-1],
        "SHOAL_MODEL": subject.model.name,
        "SHOAL_MODEL_VERSION": subject.model.version,
        "SHOAL_MODEL_STORE": str(subject.folder.parent.parent),
        "SHOAL_WORKERS": str(workers),
    }
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "server.log"
        with serving(module("service"), log, settings) as server:
            endpoint = Endpoint(server, raw=True)
            try:
                endpoint.wait()
            except RuntimeError as error:
                raise RuntimeError(f"{error}: {log.read_text()[-2000:]}") from error
            ready = json.load(urllib.request.urlopen(f"{server.address}/readyz"))  # noqa: S310
            cpu = server.cpu_seconds()
            run = summarize("", None, _load(endpoint, workers, seconds), WARM_UP, WARM_UP + seconds)
            cpu = server.cpu_seconds() - cpu
    return {
        "device": ready.get("device"),
        "backend": ready.get("backend"),
        "requests_per_second": run.achieved,
        "p50_ms": 1000 * run.latency["p50"],
        "p99_ms": 1000 * run.latency["p99"],
        "statuses": run.statuses,
        "other_class": run.different,
        "server_cores": cpu / (WARM_UP + seconds),
        "limited_by_generator": run.limited_by_generator,
        "ok": set(run.statuses) == {"200"} and not run.different,
    }


def _load(endpoint: Endpoint, workers: int, seconds: float) -> Any:
    """Loads the server from several processes."""
    count = max(1, min(2 * workers, len(os.sched_getaffinity(0)) // 3))
    jobs = [
        Job(
            url=endpoint.url,
            requests=endpoint.requests(SMALL),
            expected=endpoint.classes,
            duration=WARM_UP + seconds,
            timeout=ANSWER_TIMEOUT,
            seed=number,
            times=None,
            concurrency=max(1, CONNECTIONS * workers // count),
        )
        for number in range(count)
    ]
    return processes.run(jobs, lambda answered, failed: None)
