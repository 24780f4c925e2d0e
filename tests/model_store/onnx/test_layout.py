"""Operators that move elements: shapes, shapes computed from shapes, and images kept apart."""

from __future__ import annotations

from typing import Any

import pytest

from model_store.onnx.tensors import BOOL, FLOAT, INT64, Dims, N, Tensor
from model_store.onnx.wire import Refusal
from tests.model_store.onnx.test_layers import IMAGES, compute, ints, shaped

END = N - 1  # how the largest int64 is read


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "dims"),
    [
        ("Flatten", [IMAGES], {}, (N, 324)),
        ("Flatten", [IMAGES], {"axis": 2}, (4 * N, 81)),
        ("Reshape", [IMAGES, ints(0, -1)], {}, (N, 324)),
        ("Reshape", [IMAGES, ints(-1, 324)], {}, (N, 324)),
        ("Reshape", [IMAGES, ints(N, 324)], {}, (N, 324)),
        ("Reshape", [IMAGES, ints(-1, 81)], {}, (4 * N, 81)),
        ("Reshape", [(4 * N, 81), ints(-1, 4, 9, 9)], {}, IMAGES),
        ("Squeeze", [(N, 4, 1, 1), ints(2, -1)], {}, (N, 4)),
        ("Unsqueeze", [(N, 4), ints(0, 3)], {}, (1, N, 4, 1)),
        ("Transpose", [IMAGES], {"perm": [0, 2, 3, 1]}, (N, 9, 9, 4)),
        ("Transpose", [(N, 4)], {}, (4, N)),
        ("Concat", [IMAGES, (N, 2, 9, 9)], {"axis": 1}, (N, 6, 9, 9)),
        ("Slice", [IMAGES, ints(1), ints(END), ints(2)], {}, (N, 4, 8, 9)),
        ("Slice", [IMAGES, ints(-1), ints(-99), ints(3), ints(-2)], {}, (N, 4, 9, 5)),
        ("Slice", [IMAGES, ints(0), ints(END), ints(0)], {}, IMAGES),
        ("Gather", [IMAGES, Tensor(INT64, (), (3,))], {"axis": 1}, (N, 9, 9)),
        ("Gather", [IMAGES, ints(0, -1, 0)], {"axis": -1}, (N, 4, 9, 3)),
        ("Pad", [IMAGES, ints(0, 0, 1, 2, 0, 0, 3, 4)], {}, (N, 4, 13, 15)),
        ("Pad", [IMAGES, ints(1, 2), None, ints(-1)], {}, (N, 4, 9, 12)),
        ("Expand", [(1, 1, 8), ints(N, 5, 1)], {}, (N, 5, 8)),
        ("Shape", [IMAGES], {"start": -2}, (2,)),
        ("Where", [Tensor(BOOL, (4, 1)), (N, 1, 3), ()], {}, (N, 4, 3)),
        ("Add", [IMAGES, (4, 1, 1)], {}, IMAGES),
        ("Dropout", [IMAGES], {}, IMAGES),
        ("Constant", [], {"value_ints": [1, 2, 3]}, (3,)),
        ("Constant", [], {"value_float": 1.0}, ()),
        ("ConstantOfShape", [ints(2, 3)], {}, (2, 3)),
    ],
)
def test_shapes(op: str, inputs: list[Any], attributes: dict[str, Any], dims: Dims) -> None:
    """One valid case for each way of moving."""
    assert shaped(op, *inputs, **attributes) == dims


def data(op: str, *inputs: Any, **attributes: Any) -> tuple[int, ...] | None:
    return compute(op, *inputs, **attributes).outputs[0].data


def test_shapes_are_computed_from_shapes() -> None:
    """As exporters write x.view(x.size(0), -1) and similar."""
    assert data("Shape", IMAGES) == IMAGES
    assert data("Gather", ints(*IMAGES), Tensor(INT64, (), (0,))) == (N,)
    assert data("Concat", ints(N), ints(-1), axis=0) == (N, -1)
    assert data("Slice", ints(*IMAGES), ints(2), ints(END)) == (9, 9)
    assert data("Unsqueeze", Tensor(INT64, (), (N,)), ints(0)) == (N,)
    assert data("Cast", ints(N, 5), to=6) == (N, 5)
    assert data("Constant", value_ints=[-1, 2]) == (-1, 2)
    assert data("ConstantOfShape", ints(3), value=ints(7)) == (7, 7, 7)
    assert data("Where", Tensor(BOOL, (2,), (1, 0)), ints(1, 2), ints(3, 4)) == (1, 4)


@pytest.mark.parametrize(
    ("op", "a", "b", "result"),
    [
        ("Add", 2, 3, 5),
        ("Sub", 2, 3, -1),
        ("Mul", 2, 3, 6),
        ("Div", 7, -2, -3),
        ("Mul", N, 4, 4 * N),
        ("Mul", 4, N, 4 * N),
        ("Div", 4 * N, 2, 2 * N),
        ("Equal", 2, 2, 1),
        ("Equal", N, -1, 0),
        # The result depends on the number of images, or is not exact.
        ("Add", N, 1, None),
        ("Sub", 1 << 24, N, None),
        ("Mul", N, N, None),
        ("Mul", N, -1, None),
        ("Mul", N, 1 << 25, None),
        ("Div", N, 2, None),
        ("Div", 5, 0, None),
        ("Equal", N, 1, None),
        ("Equal", N, N, None),
        ("Sub", END, END, None),
        ("Add", END, 1, None),
        ("Mul", 1 << 20, 1 << 20, None),
        ("Pow", 2, 2, None),
    ],
)
def test_arithmetic_is_exact_for_every_number_of_images(
    op: str, a: int, b: int, result: int | None
) -> None:
    """A result that is only right for some numbers of images is unknown."""
    assert data(op, ints(a), ints(b)) == (None if result is None else (result,))


def test_numbers_that_a_cast_would_change_are_unknown() -> None:
    """The largest int64 is not the largest int32."""
    assert data("Cast", ints(END), to=6) is None
    assert data("Cast", ints(300), to=2) is None


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Reshape", [(N, 2, 3), ints(2, -1, 3)], {}),
        ("Reshape", [(4, N), ints(-1)], {}),
        ("Flatten", [(4, N)], {"axis": 0}),
        ("Concat", [(N, 3), (N, 3)], {"axis": 0}),
        ("Slice", [(N, 3), ints(1), ints(END), ints(0)], {}),
        ("Slice", [(N, 3), ints(0), ints(5), ints(0)], {}),
        ("Slice", [(N, 3), ints(0), ints(END), ints(0), ints(-1)], {}),
        ("Gather", [(N, 3), ints(0)], {"axis": 0}),
        ("Split", [(N, 3)], {"axis": 0}),
        ("Pad", [(N, 3), ints(1, 0, 0, 0)], {}),
        ("Expand", [(N, 3), ints(2, N, 3)], {}),
        ("Add", [(N, 3), (2, 3)], {}),
    ],
)
def test_images_are_not_combined(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    """No image is moved to another place, removed, or combined with another one."""
    if op == "Expand":
        assert shaped(op, *inputs) == (2, N, 3)  # copies of each image stay apart
        return
    with pytest.raises(Refusal, match=r"other images|mix the images|every batch size n"):
        compute(op, *inputs, **attributes)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "words"),
    [
        ("Reshape", [IMAGES, Tensor(INT64, (2,))], {}, "depends on computed numbers"),
        ("Reshape", [IMAGES, ints(-1, -1)], {}, "not valid"),
        ("Reshape", [IMAGES, ints(-2, 4)], {}, "not valid"),
        ("Reshape", [IMAGES, ints(0, 0, 0, 0, 0)], {}, "copies a dimension"),
        ("Reshape", [IMAGES, ints(1, 324)], {}, "cannot get the shape"),
        ("Reshape", [IMAGES, ints(-1, 5)], {}, "cannot get the shape"),
        ("Reshape", [IMAGES, ints(0, -1)], {"allowzero": 1}, "cannot get the shape"),
        ("Reshape", [IMAGES, Tensor(INT64, (), (-1,))], {}, "must be a list"),
        ("Squeeze", [(N, 1)], {}, "axes are missing"),
        ("Squeeze", [(N, 4), ints(1)], {}, "do not all have the length 1"),
        ("Unsqueeze", [(N, 4), ints(0, 0)], {}, "contain duplicates"),
        ("Unsqueeze", [(N, 4), ints(3)], {}, "axis 3 is not one of the 3"),
        ("Transpose", [IMAGES], {"perm": [0, 1, 2]}, "does not have 4 numbers"),
        ("Transpose", [IMAGES], {"perm": [0, 1, 2, 2]}, "contain duplicates"),
        ("Concat", [IMAGES, (N, 4, 9, 8)], {"axis": 1}, "do not fit in axis 1"),
        ("Concat", [IMAGES, (N, 4)], {"axis": 1}, "number of dimensions"),
        ("Concat", [IMAGES], {}, "axis 4 is not one of the 4"),
        ("Slice", [IMAGES, ints(0), ints(N), ints(1)], {}, "depends on the number of images"),
        ("Slice", [IMAGES, ints(0), ints(1), ints(1), ints(0)], {}, "or has step 0"),
        ("Slice", [IMAGES, ints(0, 1), ints(1)], {}, "different lengths"),
        ("Split", [(N, 4), ints(2, 3)], {"axis": 1}, "cannot be split into"),
        ("Split", [(N, 4)], {"axis": 1, "num_outputs": 2}, "num_outputs is not 1"),
        ("Gather", [IMAGES, ints(9)], {"axis": 3}, "indices 9 to 9 are not in axis 3"),
        ("Gather", [IMAGES, ints(-10)], {"axis": 3}, "are not in axis 3"),
        ("Gather", [IMAGES, Tensor(INT64, (2,))], {"axis": 3}, "depends on computed numbers"),
        ("Pad", [IMAGES, ints(0, 0, -1, 0, 0, 0, 0, 0)], {}, "are negative"),
        ("Pad", [IMAGES, ints(0, 0)], {}, "do not fit"),
        ("Pad", [IMAGES, ints(9, 0), None, ints(2)], {"mode": "reflect"}, "not smaller than axis"),
        ("Pad", [IMAGES, ints(9, 0), (2,), ints(2)], {}, "not one float32 number"),
        ("Expand", [(4,), ints(3)], {}, "cannot be broadcast"),
        ("Constant", [], {}, "does not have exactly one value"),
        ("ConstantOfShape", [ints(2)], {"value": ints(1, 2)}, "instead of"),
        ("Dropout", [IMAGES, None, Tensor(BOOL, (), (1,))], {}, "training_mode is set"),
        ("Where", [(N, 3), (N, 3), (N, 3)], {}, "the condition is not bool"),
        ("Add", [IMAGES, Tensor(INT64, ())], {}, "different types"),
    ],
)
def test_unfitting_inputs_are_rejected(
    op: str, inputs: list[Any], attributes: dict[str, Any], words: str
) -> None:
    """Wrong shapes, types and attributes."""
    with pytest.raises(Refusal, match=words):
        compute(op, *inputs, **attributes)


def test_expand_cannot_get_more_than_is_written() -> None:
    """A shape that is computed from the number of images is not guessed."""
    unknown = compute("Sub", ints(1 << 24), ints(N)).outputs[0]
    with pytest.raises(Refusal, match="depends on computed numbers"):
        compute("Expand", Tensor(FLOAT, (1,)), unknown)
