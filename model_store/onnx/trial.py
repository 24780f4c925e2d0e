"""Trial: a small computation that shows whether a device computes correct results.

The trial runs a convolution, for which ONNX Runtime uses cuDNN, and a matrix product, for which
ONNX Runtime uses cuBLAS.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

NETWORK = base64.b64decode(
    "CAg6lAIKDwoBeAoBdxIBYyIEQ29udgoPCgFjEgFmIgdGbGF0dGVuChEKAWYKAW0SAXkiBk1hdE11bBIFdHJpYWwq"
    "VwgCCAEIAwgDEAFCAXdKSAAAgL8AAAAAAACAPwAAgL8AAAAAAACAPwAAgL8AAAAAAACAPwAAgL8AAAAAAACAPwAA"
    "gL8AAAAAAACAPwAAgL8AAAAAAACAPypLCAgIAhABQgFtSkAAAADAAACAvwAAAAAAAIA/AAAAQAAAAMAAAIC/AAAA"
    "AAAAgD8AAABAAAAAwAAAgL8AAAAAAACAPwAAAEAAAADAWhsKAXgSFgoUCAESEAoCCAEKAggBCgIIBAoCCARiEwoB"
    "eRIOCgwIARIICgIIAQoCCAJCBAoAEA0="
)
"""Network in ONNX format: convolution 3 x 3 with two filters, and a product with an 8 x 2 matrix.
`tests/model_store/onnx/test_trial.py` creates the same bytes with the package `onnx`."""
INPUT, OUTPUT = "x", "y"


def is_right(ort: Any, provider: str, number: int) -> bool:
    """Whether a device computes the same results as the CPU.

    Args:
        ort: The module `onnxruntime`.
        provider: ONNX Runtime's name of the execution provider for the device.
        number: Number of the device, counted from 0.

    Raises an exception of ONNX Runtime if the device does not compute.
    """
    image = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4) % 5
    options = ort.SessionOptions()
    # Otherwise, ONNX Runtime would compute on the CPU if it could not use the device.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    device = (provider, {"device_id": str(number)})
    found = _compute(ort.InferenceSession(NETWORK, options, [device], enable_fallback=0), image)
    cpu = ort.InferenceSession(NETWORK, providers=["CPUExecutionProvider"])
    return bool(np.allclose(found, _compute(cpu, image), atol=1e-2))


def _compute(session: Any, image: Any) -> Any:
    return session.run([OUTPUT], {INPUT: image})[0]
