"""Exports a version to ONNX: `python -m model_store export NAME/VERSION --onnx FILE`.

The graph's input `pixels` is float32 (n, 3, 32, 32), with the normalization in the manifest. It is
the same tensor that the server accepts as FP32 over the Open Inference Protocol. The graph's output
`probabilities` is float32 (n, classes), because the temperature and the softmax are part of the
graph. The file's metadata contains the model's name, the version, the classes and the
normalization. The precision is always fp32.

MXNet's own exporter is not used. It is slow for the wide networks, declares every weight as an
input, and fails with onnx 1.19. The networks here need only seven operators.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from model_store import versions
from model_store.batch import SIDE
from model_store.manifest import BadModel, Manifest
from model_store.mxnet.network import build_filled
from model_store.mxnet.runtime import load_mxnet
from model_store.params import Arrays

OPSET = 13
IR_VERSION = 8
INPUT, OUTPUT = "pixels", "probabilities"

Node = dict[str, Any]


def export(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Write a version to an ONNX file.

    Args:
        folder: Folder of the version.
        path: Path of the ONNX file.

    Raises:
        ModuleNotFoundError: The extra `export` is not installed.
        BadModel, BadParams, OSError.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: install the extra 'shoal[export]'") from error
    model = versions.read_manifest(folder)
    nodes, arrays = _graph(model, folder)
    translated = _translated(nodes, arrays)
    translated += _probabilities(
        nodes[-1]["name"], model.temperature.value if model.temperature else 1
    )
    graph = onnx.helper.make_graph(
        translated,
        f"{model.name}_{model.version}",
        [_described(INPUT, 3, SIDE, SIDE)],
        [_described(OUTPUT, len(model.classes))],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    exported = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="shoal",
    )
    onnx.helper.set_model_props(exported, _metadata(model))
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)


def _graph(model: Manifest, folder: pathlib.Path) -> tuple[list[Node], Arrays]:
    """Return the operators and the parameters of the network.

    The operators are in the order of computation. Each operator is a dict whose key `names` has the
    names of its inputs. The parameters are arrays by name.
    """
    mx = load_mxnet(threads=1)
    parameters = versions.read_parameters(folder / model.parameters.file, model.parameters)
    network = build_filled(mx, model, mx.cpu(), parameters)
    symbol = network(mx.sym.var(INPUT))
    nodes = json.loads(symbol.tojson())["nodes"]
    for node in nodes:
        node["names"] = [nodes[at]["name"] for at, *_ in node["inputs"]]
    arrays = {name: p.data().asnumpy() for name, p in network.collect_params().items()}
    return [node for node in nodes if node["op"] != "null"], arrays


def _translated(nodes: list[Node], arrays: Arrays) -> list[Any]:
    translated = []
    for node in nodes:
        for number, (op, inputs, attributes) in enumerate(steps := list(_steps(node)), start=1):
            last = number == len(steps)
            output = node["name"] if last else f"{node['name']}_{number}"
            translated.append(_node(op, inputs, output, **attributes))
    return translated


def _steps(node: Node) -> Iterator[tuple[str, list[str], dict[str, Any]]]:
    """Translate an MXNet operator to ONNX operators.

    Yields the type, the inputs and the attributes of each ONNX operator.
    """
    attributes = node.get("attrs", {})
    match node["op"], attributes:
        case "Convolution", _:
            padding = _numbers(attributes["pad"])
            yield (
                "Conv",
                node["names"],
                {
                    "kernel_shape": _numbers(attributes["kernel"]),
                    "strides": _numbers(attributes["stride"]),
                    "dilations": _numbers(attributes["dilate"]),
                    "pads": padding + padding,
                    "group": int(attributes["num_group"]),
                },
            )
        case "BatchNorm", _:
            yield "BatchNormalization", node["names"], {"epsilon": float(attributes["eps"])}
        case "Activation", {"act_type": "relu"}:
            yield "Relu", node["names"], {}
        case (("elemwise_add" | "broadcast_add"), _):
            yield "Add", node["names"], {}
        case "Pooling", {"global_pool": "True", "pool_type": "avg"}:
            yield "GlobalAveragePool", node["names"], {}
        case "Flatten", _:
            yield "Flatten", node["names"], {}
        case "FullyConnected", _:
            yield "Flatten", node["names"][:1], {}
            yield "Gemm", [f"{node['name']}_1", *node["names"][1:]], {"transB": 1}
        case op, _:
            raise BadModel(f"{node['name']}: the export of {op} {attributes} is not supported")


def _probabilities(logits: str, temperature: float) -> Iterator[Any]:
    yield _node("Constant", [], "temperature", value_float=float(temperature))
    yield _node("Div", [logits, "temperature"], "logits")
    yield _node("Softmax", ["logits"], OUTPUT, axis=1)


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    import onnx

    return onnx.helper.make_node(op, inputs, [output], name=output, **attributes)


def _described(name: str, *shape: int) -> Any:
    import onnx

    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", *shape])


def _metadata(model: Manifest) -> dict[str, str]:
    return {
        "model": model.name,
        "version": model.version,
        "classes": json.dumps(model.classes),
        "normalisation": json.dumps(model.normalisation.model_dump()),
    }


def _numbers(text: str) -> list[int]:
    """Parse a list of numbers as MXNet writes it, such as `(3, 3)`."""
    return [int(number) for number in text.strip("()").split(",") if number.strip()]
