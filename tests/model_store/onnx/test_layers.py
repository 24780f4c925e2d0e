"""Operators that compute: shapes, costs, and what does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from model_store.onnx.node import Node, Result
from model_store.onnx.operators import OPERATORS
from model_store.onnx.tensors import FLOAT, HALF, INT8, INT32, INT64, UINT8, Dims, N, Tensor
from model_store.onnx.wire import Refusal

IMAGES = (N, 4, 9, 9)


def compute(op: str, *inputs: Any, opset: int = 17, **attributes: Any) -> Result:
    """Applies an operator's rule. Inputs are tensors or the shapes of float32 tensors."""
    given = [Tensor(FLOAT, one) if isinstance(one, tuple) else one for one in inputs]
    return OPERATORS[op].rule(Node(op, given, attributes, 1, opset))


def shaped(op: str, *inputs: Any, **attributes: Any) -> Dims:
    return compute(op, *inputs, **attributes).outputs[0].dims


def ints(*numbers: int) -> Tensor:
    return Tensor(INT64, (len(numbers),), numbers, constant=True)


@pytest.mark.parametrize(
    ("attributes", "side"),
    [
        ({}, 7),
        ({"pads": [1] * 4}, 9),
        ({"pads": [1] * 4, "strides": [2, 2]}, 5),
        ({"dilations": [2, 2]}, 5),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 5),
        ({"auto_pad": "VALID", "strides": [3, 3]}, 3),
    ],
)
def test_conv_counts_windows(attributes: dict[str, Any], side: int) -> None:
    """Strides, dilations and padding."""
    assert shaped("Conv", IMAGES, (5, 4, 3, 3), **attributes) == (N, 5, side, side)


def test_conv_counts_its_cost() -> None:
    """Multiply-adds and the bytes of all windows, per image and per group."""
    found = compute("Conv", IMAGES, (6, 2, 3, 3), (6,), group=2)
    assert found.operations == 6 * 7 * 7 * 2 * 9
    assert found.scratch == 4 * 7 * 7 * 2 * 9


def test_pool_rounds_up() -> None:
    """With ceil_mode, except for windows that begin behind the image."""
    images = (N, 4, 8, 8)
    assert shaped("MaxPool", images, kernel_shape=[3, 3], strides=[2, 2]) == (N, 4, 3, 3)
    ceil = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}
    assert shaped("MaxPool", images, **ceil) == (N, 4, 4, 4)
    assert shaped("MaxPool", (N, 4, 2, 2), **ceil | {"kernel_shape": [1, 1]}) == (N, 4, 1, 1)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "dims"),
    [
        ("Relu", [IMAGES], {}, IMAGES),
        ("Softmax", [(N, 10)], {}, (N, 10)),
        ("GlobalAveragePool", [IMAGES], {}, (N, 4, 1, 1)),
        ("ReduceMean", [IMAGES], {"axes": [2, 3], "keepdims": 0}, (N, 4)),
        ("ReduceMean", [IMAGES, ints(-1)], {}, (N, 4, 9, 1)),
        ("Gemm", [(N, 8), (10, 8), (10,)], {"transB": 1}, (N, 10)),
        ("Gemm", [(8, N), (8, 10)], {"transA": 1}, (N, 10)),
        ("MatMul", [(N, 3, 5, 8), (8, 2)], {}, (N, 3, 5, 2)),
        ("MatMul", [(N, 3, 5, 8), (N, 3, 8, 5)], {}, (N, 3, 5, 5)),
        ("LayerNormalization", [(N, 5, 8), (8,), (8,)], {}, (N, 5, 8)),
        ("BatchNormalization", [IMAGES, (4,), (4,), (4,), (4,)], {}, IMAGES),
        ("PRelu", [IMAGES, (4, 1, 1)], {}, IMAGES),
        ("Clip", [IMAGES, (), ()], {}, IMAGES),
        ("LRN", [IMAGES], {"size": 5}, IMAGES),
    ],
)
def test_shapes(op: str, inputs: list[Any], attributes: dict[str, Any], dims: Dims) -> None:
    """One valid case for each kind of operator."""
    assert shaped(op, *inputs, **attributes) == dims


def test_products_count_multiply_adds() -> None:
    """Elements of the result times the length of the sums."""
    assert compute("MatMul", (N, 5, 8), (8, 2)).operations == 5 * 2 * 8
    assert compute("Gemm", (N, 8), (8, 10)).operations == 10 * 8


def test_quantization_changes_the_element_type() -> None:
    """As the zero point says; uint8 without one."""
    scale, zero = Tensor(FLOAT, (4,)), Tensor(INT8, (4,))
    (quantized,) = compute("QuantizeLinear", IMAGES, scale, zero).outputs
    assert (quantized.dtype, quantized.dims) == (INT8, IMAGES)
    assert compute("QuantizeLinear", IMAGES, ()).outputs[0].dtype == UINT8
    (back,) = compute("DequantizeLinear", quantized, Tensor(HALF, (4,)), zero).outputs
    assert (back.dtype, back.dims) == (HALF, IMAGES)
    assert compute("Cast", IMAGES, to=10).outputs[0].dtype == HALF


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Softmax", [(N, 10)], {"axis": 0}),
        ("ReduceMean", [IMAGES], {}),
        ("ReduceMean", [IMAGES], {"axes": [0]}),
        ("LayerNormalization", [(N, 8), (8,)], {"axis": 0}),
        ("MatMul", [(5, N), (N, 3)], {}),
        ("Gemm", [(3, N), (N, 8)], {}),
        ("Conv", [(4, N, 9, 9), (5, 4, 3, 3)], {}),
        ("MaxPool", [(1, 4, N, 9)], {"kernel_shape": [1, 1]}),
        ("InstanceNormalization", [(1, 4, N), (4,), (4,)], {}),
        ("QuantizeLinear", [(N, 4), (N,), Tensor(INT8, (N,))], {"axis": 0}),
    ],
)
def test_images_are_not_combined(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    """An image's result must not depend on the images of other clients."""
    with pytest.raises(Refusal, match="other images of the batch"):
        compute(op, *inputs, **attributes)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "words"),
    [
        ("Relu", [Tensor(INT64, (N, 3))], {}, "an input is int64, not floating-point"),
        ("Conv", [IMAGES, (5, 3, 3, 3)], {}, "in 1 groups, which cannot be applied"),
        ("Conv", [IMAGES, (5, 2, 3, 3)], {"group": 2}, "5 filters are not a multiple"),
        ("Conv", [IMAGES, (5, 4, 3, 3), (4,)], {}, "does not have 5 numbers"),
        ("Conv", [IMAGES, (5, 4, 3, 3)], {"kernel_shape": [3, 4]}, "kernel_shape is not equal"),
        ("Conv", [IMAGES, (5, 4, 3, 3)], {"strides": [1]}, "do not fit the number of dimensions"),
        ("Conv", [IMAGES, (5, 4, 3, 3)], {"pads": [1, 1]}, "do not fit the number of dimensions"),
        ("Conv", [IMAGES, (5, 4, 11, 3)], {}, "larger than the padded input"),
        ("Conv", [(N, 4), (5, 4)], {}, "is not a shape of images"),
        (
            *("Conv", [IMAGES, (5, 4, 3, 3)]),
            *({"auto_pad": "SAME_UPPER", "pads": [1] * 4}, "but there are pads"),
        ),
        (
            *("Conv", [IMAGES, (5, 4, 3, 3)]),
            *({"auto_pad": "SAME_LOWER", "dilations": [2, 2]}, "dilations other than 1"),
        ),
        (
            "Conv",
            [(N, 64, 224, 224), (1, 64, 99, 99)],
            {"pads": [49] * 4},
            "the im2col matrix",
        ),
        ("MaxPool", [IMAGES], {"kernel_shape": [2]}, "1 dimensions, but the input has 2 spatial"),
        ("MaxPool", [IMAGES], {"kernel_shape": [2, 2], "pads": [2] * 4}, "not smaller than the"),
        ("Gemm", [(N, 8), (7, 3)], {}, "cannot be multiplied"),
        ("Gemm", [(N, 8), (8, 3), (5, 1, 3)], {}, "cannot be added"),
        ("Gemm", [(N, 2, 4), (8, 3)], {}, "must be matrices of the same type"),
        ("MatMul", [(8,), (8, 3)], {}, "must be matrices of the same type"),
        ("MatMul", [(N, 2, 8), (3, 8, 8)], {}, "cannot be broadcast for every batch size n"),
        ("BatchNormalization", [IMAGES, (4,), (4,), (4,), (5,)], {}, "one number for each"),
        ("LayerNormalization", [(N, 8), (7,)], {}, "does not have the shape"),
        ("PRelu", [(N, 4), (2, 1, 4)], {}, "cannot be broadcast"),
        ("Clip", [IMAGES, (4,)], {}, "is not a single float32 number"),
        ("LRN", [IMAGES], {"size": 2}, "not odd"),
        (
            "QuantizeLinear",
            [IMAGES, (3,), Tensor(INT8, (3,))],
            {},
            r"the scales have the shape \(3\); axis 1 needs 4 scales",
        ),
        ("QuantizeLinear", [IMAGES, (4,), Tensor(INT8, (2,))], {}, "different shapes"),
        ("QuantizeLinear", [IMAGES, (), Tensor(INT32, ())], {}, "int8 and uint8 are supported"),
        ("DequantizeLinear", [IMAGES, ()], {}, "the input is float32"),
        ("Cast", [IMAGES], {"to": 8}, "has the element type code 8"),
        ("Softmax", [(N, 10)], {"axis": 2}, "axis 2 is not one of the 2 dimensions"),
        ("ReduceMean", [(N, 4, 5)], {"axes": [1, -2]}, "contain duplicates"),
        ("ReduceMean", [IMAGES, Tensor(INT64, (2,))], {}, "depends on computed numbers"),
        ("Conv", [IMAGES, None], {}, "input 1 is missing"),
    ],
)
def test_unfitting_inputs_are_rejected(
    op: str, inputs: list[Any], attributes: dict[str, Any], words: str
) -> None:
    """Wrong shapes, types and attributes."""
    with pytest.raises(Refusal, match=words):
        compute(op, *inputs, **attributes)
