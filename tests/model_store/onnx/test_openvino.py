"""OpenVINO: when it is used, and that it computes the same as ONNX Runtime."""

from __future__ import annotations

import pathlib
import platform
import threading

import numpy as np
import pytest

from model_store import versions
from model_store.manifest import BadModel, PrecisionName
from model_store.onnx import openvino
from model_store.onnx.session import SessionNetwork, open_session


@pytest.mark.parametrize(
    ("precision", "device", "machine", "installed", "expected"),
    [
        ("int8", "cpu", "x86_64", True, True),
        ("fp32", "cpu", "x86_64", True, False),
        ("fp16", "gpu:0", "x86_64", True, False),
        ("int8", "cpu", "aarch64", True, False),
        ("int8", "cpu", "x86_64", False, False),
    ],
)
def test_is_useful_for_int8_on_x86_64(
    monkeypatch: pytest.MonkeyPatch,
    precision: PrecisionName,
    device: str,
    machine: str,
    installed: bool,
    expected: bool,
) -> None:
    """Where it was measured to be faster."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed or None)
    assert openvino.is_useful(precision, device) is expected


@pytest.mark.slow
class TestInstalled:
    """With OpenVINO itself."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")

    @pytest.mark.parametrize("precision", ["int8", "fp32"])
    def test_networks_compute_nearly_the_same_as_onnx_runtime(
        self, shipped: pathlib.Path, precision: PrecisionName
    ) -> None:
        """In several threads, each with its own images."""
        model = versions.read_manifest(shipped)
        content = (shipped / model.onnx[precision].file).read_bytes()
        ort = pytest.importorskip("onnxruntime")
        reference = SessionNetwork(open_session(ort, content, 1, "net.onnx"))
        images = np.random.default_rng(1).integers(0, 256, (64, 32, 32, 3), np.uint8)
        expected = reference.compute(images)
        networks = openvino.networks(content, "net.onnx", [1, 4], 1, 3)
        furthest: list[float] = []

        def run(number: int) -> None:
            network = networks[number]
            for _ in network.load():
                pass
            for start in range(number, 60, 3):
                for size in (1, 4):
                    rows = network.compute(images[start : start + size])
                    furthest.append(float(np.abs(rows - expected[start : start + size]).max()))
            network.close()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(furthest) == 120
        assert max(furthest) < (1e-3 if precision == "fp32" else 3)

    def test_networks_reject_what_is_no_network(self) -> None:
        """The message names the file."""
        with pytest.raises(BadModel, match=r"net\.onnx cannot be run by OpenVINO"):
            openvino.networks(b"not a network", "net.onnx", [1], 1, 1)
