"""Attributes have the type and the bounds that the operator's table says."""

from __future__ import annotations

from typing import Any

import pytest

from model_store.onnx import node
from model_store.onnx.messages import ATTRIBUTE
from model_store.onnx.node import FLOAT, INT, INTS, STRING, TENSOR, Attribute, read_attributes
from model_store.onnx.wire import Refusal, decode

onnx = pytest.importorskip("onnx")
ALLOWED = {
    "alpha": Attribute(FLOAT, 0, 1),
    "axis": Attribute(INT, -2, 2),
    "mode": Attribute(STRING, choices=("a", "b")),
    "value": Attribute(TENSOR),
    "pads": Attribute(INTS, 0, 9),
    "old": Attribute(INT, until=13),
    "new": Attribute(INT, since=18),
}


def read(**values: Any) -> dict[str, Any]:
    protos = [onnx.helper.make_attribute(name, value) for name, value in values.items()]
    encoded = [decode(proto.SerializeToString(), ATTRIBUTE) for proto in protos]
    return read_attributes(encoded, ALLOWED, 17)


def test_attributes_are_read() -> None:
    """Values of each type."""
    found = read(alpha=0.5, axis=-1, mode="b", pads=[0, 9])
    assert found == {"alpha": 0.5, "axis": -1, "mode": "b", "pads": [0, 9]}


def test_attributes_that_writers_leave_out_are_zero() -> None:
    """A field that is 0 may be missing."""
    assert read_attributes([{"name": "axis", "type": INT}], ALLOWED, 17) == {"axis": 0}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"unknown": 1}, "'unknown' is not supported in operator set 17"),
        ({"old": 1}, "'old' is not supported in operator set 17"),
        ({"new": 1}, "'new' is not supported in operator set 17"),
        ({"axis": 3}, "'axis' is 3, not from -2 to 2"),
        ({"alpha": 1.5}, "'alpha' is 1.5, not from 0 to 1"),
        ({"alpha": float("nan")}, "'alpha' is nan"),
        ({"pads": [0, -1]}, "'pads' is -1"),
        ({"pads": [0] * (node.MAX_INTS + 1)}, "'pads' has 1,025 numbers"),
        ({"mode": "c"}, "'mode' is 'c', not one of"),
        ({"axis": 1.0}, "'axis' has another type"),
        ({"pads": 1}, "'pads' has another type"),
    ],
    ids=str,
)
def test_attributes_are_rejected(values: dict[str, Any], words: str) -> None:
    """Unknown ones, other types, and numbers out of bounds."""
    with pytest.raises(Refusal) as caught:
        read(**values)
    assert words in caught.value.what


@pytest.mark.parametrize(
    ("protos", "words"),
    [
        ([{"name": "axis", "type": INT, "i": 1}] * 2, "'axis' occurs twice"),
        ([{"name": "axis", "type": INT, "f": 1.0}], "another type"),
        ([{"name": "axis", "type": INT, "i": 1, "ints": [1]}], "another type"),
        ([{"name": "axis", "i": 1}], "another type"),
        ([{"name": "value", "type": TENSOR}], "'value' has no value"),
        ([{"type": INT}], "'' is not supported"),
    ],
)
def test_forged_attributes_are_rejected(protos: list[dict[str, Any]], words: str) -> None:
    """A name twice, two values, or a value that does not fit the declared type."""
    with pytest.raises(Refusal) as caught:
        read_attributes(protos, ALLOWED, 17)
    assert words in caught.value.what
