"""The `.onnx` files that are written compute the same as MXNet and as the NumPy reference."""

from __future__ import annotations

import pathlib
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_store import manifest
from model_store.architectures import ARCHITECTURES, UnknownArchitecture
from model_store.backend import BackendUnavailable
from model_store.manifest import BadModel, Manifest
from model_store.onnx import architectures, writer
from model_store.params import BadParams, read_params
from tests import reference

onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
PRECISIONS = ("fp32", "fp16", "int8")


def coarse(count: int) -> Any:
    """Colored squares with a little noise, which differ as much as photographs do."""
    random = np.random.default_rng(5)
    squares = random.integers(0, 256, (count, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    noise = random.integers(-20, 21, (count, 32, 32, 3))
    return np.clip(squares + noise, 0, 255).astype(np.uint8)


def logits(content: bytes, images: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"pixels": images})[0]


def softmax(rows: Any) -> Any:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def model(shipped: pathlib.Path) -> Manifest:
    return manifest.read(shipped)


@pytest.fixture(scope="module")
def arrays(shipped: pathlib.Path, model: Manifest) -> Any:
    return read_params(shipped / model.parameters.file)


@pytest.fixture(scope="module")
def contents(model: Manifest, arrays: Any) -> dict[str, bytes]:
    """The three files of the network that ships."""
    return {
        "fp32": writer.fp32(model, arrays),
        "fp16": writer.fp16(model, arrays),
        "int8": writer.int8(model, arrays, coarse(64)),
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_interface(contents: dict[str, bytes], precision: str) -> None:
    """Files have one uint8 input, one float32 output, an open batch size and no other domains."""
    loaded = onnx.load_from_string(contents[precision])
    onnx.checker.check_model(loaded, full_check=True)
    assert [(each.domain, each.version) for each in loaded.opset_import] == [("", 13)]
    assert loaded.ir_version == 8
    assert not loaded.metadata_props
    assert {node.domain for node in loaded.graph.node} == {""}
    types = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    ports = (*loaded.graph.input, *loaded.graph.output)
    assert tuple(port.type.tensor_type.elem_type for port in ports) == types
    shapes = [
        [each.dim_param or each.dim_value for each in port.type.tensor_type.shape.dim]
        for port in ports
    ]
    assert shapes == [["n", 32, 32, 3], ["n", 10]]
    assert [port.name for port in ports] == ["pixels", "logits"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_batch_size_does_not_change_results(contents: dict[str, bytes], precision: str) -> None:
    """Each image of a batch gets the same logits as alone."""
    images = coarse(5)
    alone = np.concatenate([logits(contents[precision], images[at : at + 1]) for at in range(5)])
    assert logits(contents[precision], images) == pytest.approx(alone, abs=1e-4)


def test_fp32_equals_reference(contents: dict[str, bytes], model: Manifest, arrays: Any) -> None:
    """The network that ships computes the same as the reference in NumPy."""
    images = coarse(20)
    mean, std = model.normalisation.mean, model.normalisation.std
    expected = reference.probabilities(arrays, images, mean, std)
    assert np.abs(softmax(logits(contents["fp32"], images)) - expected).max() < 1e-5


def test_fp16_is_close_to_fp32(contents: dict[str, bytes]) -> None:
    """In fp16, parameters are float16, and probabilities differ by less than 0.01."""
    images = coarse(50)
    exact, half = (softmax(logits(contents[each], images)) for each in ("fp32", "fp16"))
    assert np.abs(exact - half).max() < 0.01
    loaded = onnx.load_from_string(contents["fp16"])
    types = Counter(each.data_type for each in loaded.graph.initializer)
    assert types == {
        onnx.TensorProto.FLOAT16: len(loaded.graph.initializer) - 2,
        onnx.TensorProto.FLOAT: 2,  # normalization of the pixels
    }


def test_int8_quantizes_all_but_the_ends(contents: dict[str, bytes]) -> None:
    """All convolutions except the first have int8 weights for each channel and uint8 inputs."""
    graph = onnx.load_from_string(contents["int8"]).graph
    constants = {each.name: each for each in graph.initializer}
    dequantized = {
        node.output[0]: constants[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    first, *others = (node for node in graph.node if node.op_type == "Conv")
    assert constants[first.input[1]].data_type == onnx.TensorProto.FLOAT
    assert len(others) == 20
    for node in others:
        assert dequantized[node.input[1]].data_type == onnx.TensorProto.INT8
    zeros = {
        constants[node.input[2]].data_type
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert zeros == {onnx.TensorProto.UINT8}


@pytest.mark.slow
def test_int8_accuracy(data: pathlib.Path, model: Manifest, arrays: Any) -> None:
    """On 1,000 test images of CIFAR-10, int8 is at most one point less accurate than fp32."""
    folder = data / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10 in {data}")
    labels = np.load(folder / "labels.npz")["test"][:1000]

    def sheet(name: str) -> Any:
        pixels = np.asarray(Image.open(folder / name).convert("RGB"))
        return pixels.reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)

    images = sheet("test_00.webp")
    exact = logits(writer.fp32(model, arrays), images).argmax(axis=1)
    quantized = writer.int8(model, arrays, sheet("train_00.webp")[:256])
    rounded = logits(quantized, images).argmax(axis=1)
    assert (rounded == labels).mean() > (exact == labels).mean() - 0.01
    assert (rounded == exact).mean() > 0.98


@pytest.mark.parametrize("precision", PRECISIONS)
def test_same_arguments_give_the_same_bytes(
    contents: dict[str, bytes], model: Manifest, arrays: Any, precision: str
) -> None:
    """A file can be recognized by its checksum."""
    images = (coarse(64),) if precision == "int8" else ()
    again: Callable[..., bytes] = getattr(writer, precision)
    assert again(model, arrays, *images) == contents[precision]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MXNet's own
@pytest.mark.parametrize("architecture", architectures.BUILDERS)
def test_fp32_equals_mxnet(architecture: str, model: Manifest) -> None:
    """Every architecture has GluonCV's parameters, and computes the same probabilities."""
    from model_store.mxnet.architectures import build
    from model_store.mxnet.runtime import load_mxnet

    try:
        mx = load_mxnet(threads=1)
        network = build(architecture, 10)
    except (BackendUnavailable, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    mx.random.seed(7)
    network.initialize(mx.init.Xavier(magnitude=3))
    network(mx.nd.zeros((1, 3, 32, 32)))
    parameters = network._collect_params_with_prefix()
    for name, parameter in parameters.items():
        if name.endswith(("gamma", "beta", "running_mean", "running_var")):
            parameter.set_data(mx.nd.random.uniform(0.5, 2, parameter.shape))
    arrays = {name: parameter.data().asnumpy() for name, parameter in parameters.items()}
    shapes = architectures.build(architecture, 10, "x").shapes
    assert {name: array.shape for name, array in arrays.items()} == shapes

    images = coarse(3)
    mean, std = model.normalisation.mean, model.normalisation.std
    normalized = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    expected = network(mx.nd.array(normalized)).asnumpy()
    changed = model.model_copy(update={"architecture": architecture})
    computed = logits(writer.fp32(changed, arrays), images)
    spread = np.abs(expected).max()  # of random parameters: softmax alone would hide differences
    assert np.abs(softmax(computed / spread) - softmax(expected / spread)).max() < 1e-5


def test_architectures_are_those_of_mxnet() -> None:
    """Every architecture that MXNet can serve can be written, and no other."""

    assert set(architectures.BUILDERS) == set(ARCHITECTURES)


def test_unknown_architecture(model: Manifest, arrays: Any) -> None:
    """The error lists the known architectures."""
    changed = model.model_copy(update={"architecture": "vgg"})
    with pytest.raises(UnknownArchitecture, match="unknown architecture 'vgg'; known: cifar_"):
        writer.fp32(changed, arrays)


def test_parameters_of_another_network(model: Manifest, arrays: Any) -> None:
    """Parameters that do not fit the architecture are rejected."""
    changed = model.model_copy(update={"architecture": "cifar_resnet56_v1"})
    with pytest.raises(BadParams, match=r"do not fit the network \(missing"):
        writer.fp32(changed, arrays)


def test_parameter_exceeds_float16(model: Manifest, arrays: Any) -> None:
    """A parameter that float16 cannot represent is an error that names it."""
    changed = {**arrays, "output.bias": np.full(10, 1e5, np.float32)}
    with pytest.raises(BadModel, match=r"output\.bias has values that float16 cannot represent"):
        writer.fp16(model, changed)


def test_int8_without_images(model: Manifest, arrays: Any) -> None:
    """int8 needs images to observe the ranges."""
    with pytest.raises(ValueError, match="calibration images"):
        writer.int8(model, arrays, coarse(0))


@pytest.mark.parametrize(
    ("package", "extra"), [("onnx", "export"), ("onnxruntime.quantization", "onnx")]
)
def test_missing_package(
    monkeypatch: pytest.MonkeyPatch, model: Manifest, arrays: Any, package: str, extra: str
) -> None:
    """The error says which extra to install."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"install the extra 'shoal\[{extra}\]'"):
        writer.int8(model, arrays, coarse(1))
