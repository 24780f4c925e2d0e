"""The report about a GPU, and the images that are compared."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.report import failed, table
from benchmarks.gpu.subject import RECORD, blocks, cifar

RESULTS: dict[str, Any] = {
    "machine": {"gpu": "NVIDIA Test", "onnxruntime": "1.0"},
    "answers": {"fp32": {"same_class": 5, "ok": True}, "seconds": 1.0},
    "latency": {
        "fp32, graphs": {"1": {"median_us": 60.4}, "64": {"median_us": 130.0}},
        "fp32": {"1": {"median_us": 160.0}, "64": {"median_us": 350.0}},
        "seconds": 2.5,
    },
    "variants": {"skipped": "there is no GPU"},
    "lost": {"exit_status": 0, "ok": True},
}


def test_table_shows_all_results() -> None:
    """Latencies in columns, and everything else as text."""
    lines = table(RESULTS).splitlines()
    assert lines[0] == "gpu: NVIDIA Test"
    assert lines[3].split()[-3:] == ["of", "1", "64"]
    assert lines[4].split() == ["fp32,", "graphs", "60", "130"]
    assert "  skipped: there is no GPU" in lines
    assert "  fp32: same_class 5, ok True" in lines
    assert lines[-1] == "failed: none"


@pytest.mark.parametrize(
    "fault",
    [
        {"latency": {"fp32": {"error": "refused"}}},
        {"answers": {"fp32": {"ok": False}}},
        {"requests": {"error": "RuntimeError: the server does not answer"}},
    ],
)
def test_failed_names_the_checks(fault: dict[str, Any]) -> None:
    """An error, or a check whose `ok` is False, at any depth."""
    results = RESULTS | fault
    assert failed(results) == list(fault)
    assert table(results).endswith(f"failed: {next(iter(fault))}")


def test_blocks_are_the_same_in_every_call() -> None:
    """And differ from each other."""
    assert np.array_equal(blocks(20), blocks(20))
    assert len({image.tobytes() for image in blocks(20)}) == 20


def test_cifar_reads_pixels_and_labels(tmp_path: pathlib.Path) -> None:
    """The colors of an image are stored one after the other."""
    path = tmp_path / "test_batch.bin"
    records = np.random.default_rng(0).integers(0, 10, (3, RECORD), np.uint8)
    records.tofile(path)
    pixels, labels = cifar(path, 2)
    assert pixels.shape == (2, 32, 32, 3) and list(labels) == list(records[:2, 0])
    assert list(pixels[1, 0, 5]) == [records[1, 1 + 1024 * color + 5] for color in range(3)]
