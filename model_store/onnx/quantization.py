"""Quantization: makes an int8 file from an fp32 file, with `onnxruntime.quantization`.

Weights are quantized to int8, with a scale for each channel, and activations to uint8. The file
contains pairs of the operators QuantizeLinear and DequantizeLinear. ONNX Runtime has fast x86
kernels for this combination only; with int8 activations, a network would be slower than in fp32.
The last layer, and all operators up to and including the first convolution, compute in float32.

The range of a tensor is the mean of its ranges in batches of `BATCH` calibration images. The range
from the minimum to the maximum of all images would be wider, and results would be less exact
(docs/decisions/0024-onnx-by-hand.md).
"""

from __future__ import annotations

import importlib
import pathlib
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.onnx.writer import load_onnx, to_bytes

BATCH = 64
"""Number of calibration images in a batch."""
PRE_PROCESSED = {"onnx.quant.pre_process": "onnxruntime.quant"}
"""Metadata that tells `onnxruntime.quantization` that the graph needs no optimization first."""

Images = NDArray[np.uint8]


def quantize(content: bytes, images: Images) -> bytes:
    """Return an `.onnx` file that computes in int8. The same arguments give the same bytes.

    Args:
        content: Content of an fp32 file, from `writer.fp32`.
        images: Calibration images, uint8 (n, height, width, channels), on which the ranges of all
            tensors are observed. A few hundred are enough.

    Raises:
        ValueError: There are no images.
        ModuleNotFoundError: The package `onnx` or `onnxruntime` is not installed.
    """
    if not len(images):
        raise ValueError("int8 needs calibration images")
    onnx, quantization = load_onnx(), _load_quantization()
    exact = onnx.load_from_string(content)
    onnx.helper.set_model_props(exact, PRE_PROCESSED)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "net.onnx")
        quantization.quantize_static(
            exact,
            path,
            _reader(quantization, exact.graph.input[0].name, images),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            nodes_to_exclude=_in_float(exact),
            extra_options={"CalibMovingAverage": True},
        )
        quantized = onnx.load(path)
    del quantized.metadata_props[:], quantized.graph.value_info[:]
    quantized.producer_name, quantized.producer_version = exact.producer_name, ""
    onnx.checker.check_model(quantized, full_check=True)
    return to_bytes(quantized)


def _load_quantization() -> Any:
    try:
        return importlib.import_module("onnxruntime.quantization")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: install the extra 'shoal[onnx]'") from error


def _reader(quantization: Any, name: str, images: Images) -> Any:
    """Return a `CalibrationDataReader` that returns the images in batches, and then None."""
    batches = iter([images[start : start + BATCH] for start in range(0, len(images), BATCH)])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Images] | None:
            batch = next(batches, None)
            return None if batch is None else {name: batch}

    return Reader()


def _in_float(model: Any) -> list[str]:
    """Return the names of the nodes that are not quantized."""
    nodes = list(model.graph.node)
    first = next(at for at, node in enumerate(nodes) if node.op_type == "Conv")
    return [node.name for at, node in enumerate(nodes) if at <= first or node.op_type == "Gemm"]
