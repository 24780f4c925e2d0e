"""Writer: creates the `.onnx` files of a version in fp32 and fp16, without MXNet.

Each file has one input, `pixels`, uint8 (n, height, width, channels), and one output, `logits`,
float32 (n, classes). The batch size `n` is open. The normalization of the pixels is part of the
graph; the temperature and the softmax are not. The same arguments always give the same bytes.
`quantization` creates the int8 file from the fp32 file.

In fp16, the pixels are normalized in float32, and the convolutions compute in float16.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.batch import SIDE
from model_store.manifest import BadModel, Manifest
from model_store.onnx import architectures
from model_store.onnx.translation import Operator, translate
from model_store.params import Arrays, check_params

INPUT, OUTPUT = "pixels", "logits"
NORMALIZED = "normalized"
INSTALL = "install the extra 'shoal[export]'"
"""What to install to get the package `onnx`."""
OPSET = 13
IR_VERSION = 8


def fp32(model: Manifest, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return an `.onnx` file that computes in float32.

    Args:
        model: Manifest with the architecture, the classes and the normalization.
        arrays: Parameters by their names in GluonCV, as `params.read_params` returns them.

    Raises:
        BadModel: The architecture is unknown.
        BadParams: The parameters do not fit the architecture.
        ModuleNotFoundError: The package `onnx` is not installed.
    """
    operators, parameters = network(model, arrays, NORMALIZED, OUTPUT)
    before, constants = _normalization(model)
    return to_bytes(_file(model, [*before, *operators], constants | parameters))


def fp16(model: Manifest, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return an `.onnx` file whose parameters are float16 and whose network computes in float16.

    Arguments and errors are as in `fp32`. Also raises BadModel if a parameter is too large for
    float16.
    """
    operators, parameters = network(model, arrays, "normalized16", "logits16")
    before, constants = _normalization(model)
    before.append(Operator("Cast", [NORMALIZED], "normalized16", {"to": _type("FLOAT16")}))
    after = Operator("Cast", ["logits16"], OUTPUT, {"to": _type("FLOAT")})
    halves = {name: _half(name, array) for name, array in parameters.items()}
    return to_bytes(_file(model, [*before, *operators, after], constants | halves))


def network(
    model: Manifest, arrays: Mapping[str, NDArray[Any]], input_: str, output: str
) -> tuple[list[Operator], Arrays]:
    """Return the operators and the parameters of a version's network. Errors are as in `fp32`.

    Args:
        model: As in `fp32`.
        arrays: As in `fp32`.
        input_: Name of the input: normalized images, float32 (n, channels, height, width).
        output: Name of the output: logits, float32 (n, classes).
    """
    graph = architectures.build(model.architecture, len(model.classes), input_)
    check_params(arrays, graph.shapes)
    return translate(graph.nodes, arrays, output)


def load_onnx() -> Any:
    """Return the package `onnx`.

    Raises:
        ModuleNotFoundError: The package is not installed. The message says what to install.
    """
    try:
        return importlib.import_module("onnx")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: {INSTALL}") from error


def make_model(
    name: str,
    operators: Sequence[Operator],
    arrays: Mapping[str, NDArray[Any]],
    input_: Any,
    output: Any,
) -> Any:
    """Return a checked `onnx.ModelProto`.

    Args:
        name: Name of the graph.
        operators: Operators in the order of computation.
        arrays: Parameters by name.
        input_: Description of the input, an `onnx.ValueInfoProto`.
        output: Description of the output.
    """
    onnx = load_onnx()
    nodes = [
        onnx.helper.make_node(
            each.op, each.inputs, [each.output], name=each.output, **each.attributes
        )
        for each in operators
    ]
    parameters = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, name, [input_], [output], parameters),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="shoal",
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def _normalization(model: Manifest) -> tuple[list[Operator], Arrays]:
    """Return operators that convert `INPUT` to `NORMALIZED`, (n, channels, height, width).

    The channels are moved before the cast, because moving bytes is cheaper than moving floats.
    """
    mean = np.asarray(model.normalisation.mean)
    std = np.asarray(model.normalisation.std)
    constants = {"pixel_scale": 1 / (255 * std), "pixel_shift": mean / std}
    operators = [
        Operator("Transpose", [INPUT], "planes", {"perm": [0, 3, 1, 2]}),
        Operator("Cast", ["planes"], "floats", {"to": _type("FLOAT")}),
        Operator("Mul", ["floats", "pixel_scale"], "scaled"),
        Operator("Sub", ["scaled", "pixel_shift"], NORMALIZED),
    ]
    return operators, {
        name: array.astype(np.float32).reshape(1, -1, 1, 1) for name, array in constants.items()
    }


def _file(model: Manifest, operators: Sequence[Operator], arrays: Arrays) -> Any:
    image = (SIDE, SIDE, len(model.normalisation.mean))
    described = load_onnx().helper.make_tensor_value_info
    return make_model(
        model.architecture,
        operators,
        arrays,
        described(INPUT, _type("UINT8"), ["n", *image]),
        described(OUTPUT, _type("FLOAT"), ["n", len(model.classes)]),
    )


def to_bytes(model: Any) -> bytes:
    """Return the content of an `.onnx` file. Equal models give equal bytes."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _type(name: str) -> int:
    number: int = getattr(load_onnx().TensorProto, name)
    return number


def _half(name: str, array: NDArray[Any]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise BadModel(f"{name} has values that float16 cannot represent. Use fp32 or int8")
    return half
