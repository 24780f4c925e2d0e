"""Only `.onnx` files that are safe to load are accepted, and their description is right."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_store.manifest import BadModel
from model_store.onnx import file
from model_store.onnx.file import BadOnnx, Port, check_onnx, read_onnx
from model_store.onnx.wire import Refusal
from tests.model_store.fuzz_params import damaged
from tests.model_store.onnx.fuzz_onnx import changed, examine, onnxruntime, run, sound_files
from tests.model_store.onnx.networks import KNOWN, Graph, TensorProto, edited, onnx, small
from tests.model_store.onnx.random_graphs import RandomGraph, with_images
from tests.model_store.onnx.test_wire import number, sized

MANY = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.onnx"


def test_read_returns_the_bytes_and_describes_them(path: Path) -> None:
    """The bytes are unchanged, and input, output and checksum are those of the file."""
    path.write_bytes(content := small())
    found = read_onnx(path)
    assert found.content == content
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert found.input == Port("pixels", np.dtype("f4"), (None, 3, 8, 8))
    assert found.output == Port(found.output.name, np.dtype("f4"), (None, 10))


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8])
@pytest.mark.parametrize("first", ["n", None, 1])
def test_read_accepts_open_and_single_batches(dtype: int, first: Any) -> None:
    """The number of images is open, or 1; pixels are float32, float16 or uint8."""
    graph = Graph((first, 3, 8, 8), dtype=dtype)
    found = check_onnx(graph.file(graph.add("Flatten", graph.add("Cast", "pixels", to=1))))
    assert found.input.shape == (1 if first == 1 else None, 3, 8, 8)
    assert found.output.shape == (1 if first == 1 else None, 192)


# Reading files


def test_read_rejects_what_is_not_a_file(path: Path) -> None:
    """A directory, a missing file, and a pipe, which would block a reader forever."""
    with pytest.raises(BadOnnx, match="not a regular file"):
        read_onnx(path.parent)
    with pytest.raises(BadOnnx, match="No such file or directory"):
        read_onnx(path)
    os.mkfifo(path)
    with pytest.raises(BadOnnx, match="not a regular file"):
        read_onnx(path)
    assert issubclass(BadOnnx, BadModel)


def test_read_rejects_a_file_over_the_limit(path: Path) -> None:
    """Before any of it is read."""
    path.write_bytes(content := small())
    assert read_onnx(path, max_bytes=len(content)).content == content
    with pytest.raises(BadOnnx, match=r"are more than the .* allowed"):
        read_onnx(path, max_bytes=len(content) - 1)
    os.truncate(path, 1 << 40)  # a terabyte of holes
    with pytest.raises(BadOnnx, match=r"more than the 1,073,741,824 allowed"):
        read_onnx(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04 a zip archive", "ModelProto"),
        (b"version https://git-lfs", "ModelProto"),
        (b"<html>", "ModelProto"),
        (number(1, 8) + sized(8, number(2, 17)), "the file has no graph"),
    ],
)
def test_read_rejects_other_files(path: Path, content: bytes, words: str) -> None:
    """The message names the file and says what to do."""
    path.write_bytes(content)
    with pytest.raises(BadOnnx, match=words) as caught:
        read_onnx(path)
    assert str(caught.value).startswith(f"{path}: ")


# The structure


def _external(model: Any) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def _function(model: Any) -> None:
    model.functions.add(name="f", domain="d")


def _subgraph(model: Any) -> None:
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("body", model.graph))


def _input(index: int, value: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[index].dim_value = value

    return change


def _declared(*dims: Any, code: int = 1) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        name = model.graph.node[0].output[0]
        described = onnx.helper.make_tensor_value_info(name, code, dims)
        model.graph.value_info.append(described)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: setattr(m, "ir_version", 3), "ir_version is 3; 4 to 13 are supported"),
        (lambda m: setattr(m, "ir_version", 99), "ir_version is 99"),
        (lambda m: setattr(m.opset_import[0], "version", 12), "has the version 12; 13 to 21"),
        (lambda m: setattr(m.opset_import[0], "version", 22), "has the version 22"),
        (lambda m: setattr(m.opset_import[0], "domain", "a"), "must import the standard"),
        (
            lambda m: m.opset_import.add(domain="ai.onnx", version=17),
            "standard operator set exactly once",
        ),
        (
            lambda m: [m.opset_import.add(domain=f"{at}") for at in range(16)],
            "operator set exactly once",
        ),
        (lambda m: m.training_info.add(), "ModelProto has training information"),
        (_function, "ModelProto has functions"),
        (_subgraph, "AttributeProto has a subgraph"),
        (lambda m: m.graph.sparse_initializer.add(), "GraphProto has sparse tensors"),
        (lambda m: m.graph.quantization_annotation.add(), "annotations of quantization"),
        (_external, "'p0' has data in another file"),
        (lambda m: m.graph.output.append(m.graph.output[0]), "2 outputs instead of one"),
        (lambda m: m.graph.ClearField("output"), "0 outputs instead of one"),
        (lambda m: setattr(m.graph.output[0], "name", "pixels"), "no node computes the output"),
        (lambda m: setattr(m.graph.output[0], "name", "p0"), "no node computes the output 'p0'"),
        (lambda m: setattr(m.graph.output[0], "name", "x"), "no node computes the output 'x'"),
        (lambda m: m.graph.ClearField("input"), "0 inputs instead of one"),
        (lambda m: m.graph.input.append(m.graph.input[0]), "2 inputs instead of one"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "'p0' of a parameter is e"),
        (lambda m: setattr(m.graph.initializer[0], "name", ""), "'' of a parameter is empty or"),
        (_input(0, 2), "the first dimension must be open or 1, and the others must be fixed"),
        (_input(0, 0), "the first dimension must be open"),
        (_input(1, 0), "each dimension must be from 1 to"),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim[2].Clear(), "the first dimen"),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "the first dimen"),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 7),
            "the input is int64; float32",
        ),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 8),
            "element type code 8",
        ),
        (lambda m: m.graph.input[0].type.sequence_type.elem_type, "type that is not a tensor"),
        (_declared("n", 5, 8, 8), "declared with the shape"),
        (_declared(7, 4, 8, 8), "declared with the shape"),
        (_declared("n", 4), "declared with the shape"),
        (_declared("n", "n", 8, 8), "declared with the shape"),
        (_declared("n", 4, 8, 8, code=10), "declared as float16, but is float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_check_rejects(change: Any, words: str) -> None:
    """One change to a valid file for each rule."""

    def apply(model: Any) -> None:
        change(model)
        if words.startswith("type that"):
            model.graph.input[0].type.sequence_type.SetInParent()

    with pytest.raises(Refusal) as caught:
        check_onnx(edited(small(), apply))
    assert words in caught.value.what and caught.value.do


def test_check_rejects_both_kinds_of_a_dimension() -> None:
    """protobuf would take the later one of a value and a name."""
    dim = sized(1, number(1, 8) + sized(2, b"n"))
    value = sized(1, b"pixels") + sized(2, sized(1, number(1, 1) + sized(2, dim)))
    graph = sized(11, value) + sized(12, sized(1, b"y"))
    with pytest.raises(Refusal, match="a dimension with a value and a name"):
        check_onnx(number(1, 8) + sized(8, number(2, 17)) + sized(7, graph))


def test_check_rejects_an_output_that_is_not_a_row_for_each_image() -> None:
    """A number for all images, or images in another dimension."""
    graph = Graph(("n", 8))
    moved = graph.file(graph.add("Transpose", "pixels"))
    with pytest.raises(Refusal, match="is not one row for each image"):
        check_onnx(moved)


def test_check_accepts_what_tools_leave_behind() -> None:
    """Imports without use, declarations of removed values, and parameters that are inputs."""

    def change(model: Any) -> None:
        model.opset_import.add(domain="com.microsoft", version=1)
        model.graph.value_info.append(onnx.helper.make_tensor_value_info("gone", 1, [5]))
        shape = onnx.numpy_helper.to_array(model.graph.initializer[0]).shape
        model.graph.input.append(onnx.helper.make_tensor_value_info("p0", 1, shape))
        _declared("n", 4, None, 8)(model)

    assert check_onnx(edited(small(), change)).operators == check_onnx(small()).operators


@pytest.mark.parametrize("what", ["node", "initializer", "value_info"])
def test_check_limits_lists(what: str) -> None:
    """One more than allowed."""
    field = {"node": 1, "initializer": 5, "value_info": 13}[what]
    graph = sized(field, b"") * (file.LENGTHS[what] + 1)
    with pytest.raises(
        Refusal, match=f"entries in the list {what}; {file.LENGTHS[what]:,} are allowed"
    ):
        check_onnx(number(1, 8) + sized(8, number(2, 17)) + sized(7, graph))


# Real networks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "billions"),
    [
        ("resnet50", 224, 4.1),
        ("densenet201", 224, 4.3),
        ("vgg19", 224, 19.6),
        ("squeezenet", 224, 0.36),
        ("mobilenet_v2", 224, 0.3),
        ("efficientnet_b4", 380, 4.5),
        ("vit", 224, 1.26),
    ],
)
def test_known_networks_pass(name: str, side: int, billions: float) -> None:
    """Within a second, without a copy, and with the published number of multiply-adds."""
    content = KNOWN[name](side)
    began = time.thread_time()
    found = check_onnx(content)
    assert time.thread_time() - began < 2
    assert found.output.shape == (None, 1000)
    assert abs(found.multiply_adds / 1e9 / billions - 1) < 0.12
    tracemalloc.start()
    check_onnx(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KNOWN if name != "vgg19"])
def test_known_networks_run(name: str) -> None:
    """ONNX Runtime computes what was accepted, and images do not depend on each other."""
    side = 64 if name == "vit" else 32
    found = check_onnx(KNOWN[name](side))
    session = onnxruntime.InferenceSession(found.content, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).random((3, 3, side, side), np.float32)
    (together,) = session.run(None, {"pixels": pixels})
    (alone,) = session.run(None, {"pixels": pixels[1:2]})
    assert together.shape == (3, 1000)
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-3, atol=1e-3)


# Shapes


def check_shapes(seed: int) -> int:
    """Compares all shapes of a random graph with those of ONNX Runtime, and counts them."""
    graph = RandomGraph(seed)
    graph.grow(10)
    if not graph.nodes:
        return 0
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(
            graph.all_outputs(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # noqa: BLE001 (ONNX's inference fails for some poolings that round up)
        return 0
    names = [output.name for output in session.get_outputs()]
    for images in (1, 3):
        shape = with_images(graph.walk.values["pixels"].dims, images)
        try:
            arrays = session.run(None, {"pixels": np.ones(shape, np.float32)})
        except Exception:  # noqa: BLE001 (such as a negative padding of SAME_UPPER)
            return 0
        for name, array in zip(names, arrays, strict=True):
            tensor = graph.walk.values[name]
            assert array.shape == with_images(tensor.dims, images), (seed, name)
            assert array.dtype == tensor.dtype, (seed, name)
            if tensor.data is not None:
                assert tuple(array.ravel()) == with_images(tensor.data, images), (seed, name)
    return len(names)


@pytest.mark.slow
def test_shapes_are_those_of_onnx_runtime() -> None:
    """Of every value in random graphs of all kinds of operators, for one and three images."""
    assert sum(check_shapes(seed) for seed in range(150)) > 700


def test_shapes_are_those_of_onnx() -> None:
    """ONNX's inference finds the same shapes where it finds any."""
    known = 0
    for seed in range(40):
        graph = RandomGraph(seed)
        graph.grow(10)
        if not graph.nodes:
            continue
        inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph.all_outputs()))
        ceil = any(a.name == "ceil_mode" and a.i for node in graph.nodes for a in node.attribute)
        for value in () if ceil else inferred.graph.output:
            tensor = value.type.tensor_type
            dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
            ours = graph.walk.values[value.name].dims
            if tensor.HasField("shape"):
                assert len(dims) == len(ours), (seed, value.name)
                assert all(a in (None, b) for a, b in zip(dims, ours, strict=True)), (seed, value)
                known += len([dim for dim in dims if dim])
    assert known > 200


# Damage


@pytest.mark.slow
def test_read_handles_damaged_files(path: Path) -> None:
    """Each is rejected, or accepted and run or rejected by ONNX Runtime."""
    dice, files = random.Random(3), sound_files()
    outcomes = {"refused": 0}
    for at in range(600):
        damage = changed if at % 3 else damaged
        path.write_bytes(damage(dice, dice.choice(files)))
        found = examine(path)
        outcome = run(found) if found else "refused"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes["refused"] > 200 and outcomes["run"] > 30


@pytest.mark.slow
def test_read_rejects_a_file_truncated_at_any_byte() -> None:
    """No prefix of a file is a file."""
    content = small()
    for cut in range(len(content)):
        with pytest.raises(Refusal):
            check_onnx(content[:cut])


@MANY
@given(st.binary(max_size=300), st.sampled_from([b"", small()[:30], small()[:-20]]))
def test_read_survives_random_bytes(soup: bytes, start: bytes) -> None:
    """Any bytes are rejected with a message, or accepted."""
    with contextlib.suppress(Refusal):
        check_onnx(start + soup)


def test_the_largest_lists_take_little_time_and_memory() -> None:
    """Fields of two bytes that become objects, as many as are allowed."""
    for nested in (
        b"\x0a\x00" * ((1 << 19) - 8),  # nodes
        sized(1, b"\x2a\x00" * ((1 << 19) - 8)),  # attributes of a node
    ):
        content = number(1, 8) + sized(8, number(2, 17)) + sized(7, nested)
        began = time.thread_time()
        with pytest.raises(Refusal):
            check_onnx(content)
        assert time.thread_time() - began < 20  # 0.7 s on a quiet machine
