"""Exports a version to ONNX: `python -m model_store export NAME/VERSION --onnx FILE`.

The graph's input `pixels` is float32 (n, 3, 32, 32), with the normalization in the manifest. This
input is the same tensor that the server accepts as FP32 over the Open Inference Protocol. The
graph's output `probabilities` is float32 (n, classes), because the temperature and the softmax are
part of the graph. The file's metadata contains the model's name, the version, the classes and the
normalization. The precision is always fp32. MXNet is not needed.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from model_store import versions
from model_store.batch import SIDE
from model_store.manifest import Manifest
from model_store.onnx import writer
from model_store.onnx.translation import Operator

INPUT, OUTPUT = "pixels", "probabilities"


def export(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Write a version to an ONNX file.

    Args:
        folder: Folder of the version.
        path: Path of the ONNX file.

    Raises:
        ModuleNotFoundError: The extra `export` is not installed.
        BadModel, BadParams, OSError.
    """
    onnx = writer.load_onnx()
    model = versions.read_manifest(folder)
    parameters = versions.read_parameters(folder / model.parameters.file, model.parameters)
    operators, arrays = writer.network(model, parameters, INPUT, "raw_logits")
    temperature = model.temperature.value if model.temperature else 1
    arrays["temperature"] = np.float32(temperature).reshape(1)
    described = onnx.helper.make_tensor_value_info
    exported = writer.make_model(
        f"{model.name}_{model.version}",
        [
            *operators,
            Operator("Div", ["raw_logits", "temperature"], "logits"),
            Operator("Softmax", ["logits"], OUTPUT, {"axis": 1}),
        ],
        arrays,
        described(INPUT, onnx.TensorProto.FLOAT, ["n", len(model.normalisation.mean), SIDE, SIDE]),
        described(OUTPUT, onnx.TensorProto.FLOAT, ["n", len(model.classes)]),
    )
    onnx.helper.set_model_props(exported, _metadata(model))
    onnx.save(exported, path)


def _metadata(model: Manifest) -> dict[str, str]:
    return {
        "model": model.name,
        "version": model.version,
        "classes": json.dumps(model.classes),
        "normalisation": json.dumps(model.normalisation.model_dump()),
    }
