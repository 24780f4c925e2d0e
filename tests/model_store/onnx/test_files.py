"""A version's ONNX files are written with descriptions that are true."""

from __future__ import annotations

import hashlib
import pathlib

import numpy as np
import pytest

from model_store import probes, versions
from model_store.onnx import files
from model_store.onnx.file import check_onnx

pytest.importorskip("onnx", reason="the extra 'export' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytestmark = pytest.mark.slow


def test_write_describes_each_file(shipped: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Size, checksum and probabilities of the probe images; the reader accepts the files."""
    model = versions.read_manifest(shipped)
    arrays = versions.read_parameters(shipped / model.parameters.file, model.parameters)
    calibration = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), np.uint8)
    described = files.write(tmp_path, model, arrays, calibration)
    assert set(described) == {"fp32", "fp16", "int8"}
    for precision, one in described.items():
        content = (tmp_path / one.file).read_bytes()
        check_onnx(content)
        assert one.bytes == len(content)
        assert one.sha256 == hashlib.sha256(content).hexdigest()
        rows = files.probabilities(content, model, probes.images())
        assert np.abs(rows - np.array(one.probes)).max() < 1e-6
        exact = np.array(model.probes["fp32"])
        assert np.abs(rows - exact).max() < 2 * probes.MAX_DIFFERENCE[precision]
    assert set(files.write(tmp_path, model, arrays)) == {"fp32", "fp16"}


def test_probabilities_run_any_number_of_images(shipped: pathlib.Path) -> None:
    """In several batches."""
    model = versions.read_manifest(shipped)
    content = (shipped / model.onnx["fp32"].file).read_bytes()
    images = np.random.default_rng(1).integers(0, 256, (files.BATCH + 1, 32, 32, 3), np.uint8)
    rows = files.probabilities(content, model, images)
    assert rows.shape == (files.BATCH + 1, 10)
    assert np.abs(rows[-1:] - files.probabilities(content, model, images[-1:])).max() < 1e-5
