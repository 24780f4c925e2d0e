"""Describes nodes, which are the input of the rules, and the attributes of operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from model_store.onnx import tensors
from model_store.onnx.tensors import Dims, Tensor
from model_store.onnx.wire import Decoded, Refusal

MAX_INTS = 1 << 10
"""Maximum length of a list in an attribute."""
FLOAT, INT, STRING, TENSOR, FLOATS, INTS = 1, 2, 3, 4, 6, 7
FIELDS = {FLOAT: "f", INT: "i", STRING: "s", TENSOR: "t", FLOATS: "floats", INTS: "ints"}
"""Field of an AttributeProto that contains the value, by the attribute's type."""
EMPTY = {FLOAT: 0.0, INT: 0, STRING: ""}
"""Default values, which some exporters do not write."""
LARGE = 1 << 31


@dataclass(frozen=True)
class Attribute:
    """An attribute that an operator may have: its type, and the bounds of its numbers."""

    type: int
    low: float = -inf
    high: float = inf
    choices: tuple[str, ...] = ()
    since: int = 0
    """First operator set with this attribute."""
    until: int = LARGE
    """Last operator set with this attribute."""


@dataclass(frozen=True)
class Node:
    """A node with known inputs. The operator's rule computes the outputs."""

    op: str
    inputs: Sequence[Tensor | None]
    """Inputs in order. None: an optional input that is not given."""
    attributes: Mapping[str, Any]
    outputs: int
    """Number of outputs."""
    opset: int

    def input(self, at: int) -> Tensor | None:
        """Return an optional input."""
        return self.inputs[at] if at < len(self.inputs) else None

    def given(self, at: int) -> Tensor:
        """Return an input that the operator needs. Raises Refusal."""
        tensor = self.input(at)
        if tensor is None:
            raise Refusal(f"input {at} is missing")
        return tensor

    def known(self, at: int) -> tuple[int, ...]:
        """Return the elements of an input, which must be known before the network runs.

        Raises:
            Refusal: The input is missing, is computed from images, or has too many elements.
        """
        tensor = self.given(at)
        if tensor.data is None:
            raise Refusal(
                f"input {at} is not a constant of at most {tensors.MAX_DATA:,} integers, so a "
                "shape or a position depends on computed numbers",
                "Export the network for images of one size, with constant folding",
            )
        return tensor.data


@dataclass(frozen=True)
class Result:
    """The outputs of a node, and the cost of computing them."""

    outputs: list[Tensor]
    operations: int = 0
    """Multiply-adds per image. 0: the number of elements of the largest input or output."""
    scratch: int = 0
    """Bytes that the operator needs besides its inputs and outputs, per image."""


def axis(number: int, rank: int) -> int:
    """Return an axis, which may be negative, as a number from 0. Raises Refusal."""
    if not -rank <= number < rank:
        raise Refusal(f"axis {number} is not one of the {rank} dimensions")
    return number % rank


def axes(numbers: Sequence[int], rank: int) -> list[int]:
    """Return axes as numbers from 0, in the given order. Raises Refusal."""
    found = [axis(number, rank) for number in numbers]
    if len({*found}) != len(found):
        raise Refusal(f"the axes {found[:8]} contain duplicates")
    return found


def fixed(dims: Dims, *at: int) -> None:
    """Check that an operator does not combine images. Raises Refusal.

    Args:
        dims: Shape of a tensor.
        at: Axes that the operator combines.
    """
    if any(dims[number] % tensors.N == 0 for number in at):
        raise Refusal("the result for an image would depend on other images of the batch")


def read_attributes(
    protos: Sequence[Decoded], allowed: Mapping[str, Attribute], opset: int
) -> dict[str, Any]:
    """Return the values of attributes by name.

    Args:
        protos: The decoded AttributeProtos.
        allowed: Attributes that the operator may have.
        opset: Version of the operator set.

    Raises:
        Refusal: An attribute is unknown, repeated, of another type, or out of its bounds.
    """
    found: dict[str, Any] = {}
    for proto in protos:
        name = proto.get("name", "")
        rule = allowed.get(name)
        if rule is None or not rule.since <= opset <= rule.until:
            raise Refusal(f"the attribute {name[:40]!r} is not supported in operator set {opset}")
        if name in found:
            raise Refusal(f"the attribute {name!r} occurs twice")
        found[name] = _value(proto, rule, name)
    return found


def _value(proto: Decoded, rule: Attribute, name: str) -> Any:
    values = [key for key in FIELDS.values() if proto.get(key, ()) != ()]
    wanted = FIELDS[rule.type]
    if proto.get("type") != rule.type or values not in ([wanted], []):
        raise Refusal(f"the attribute {name!r} has another type than the operator defines")
    value = proto.get(wanted, EMPTY.get(rule.type))
    if rule.type == TENSOR:
        return tensors.read(value, f"the attribute {name!r}") if value else _no_tensor(name)
    if rule.type == STRING:
        if value not in rule.choices:
            raise Refusal(f"the attribute {name!r} is {value[:40]!r}, not one of {rule.choices}")
        return value
    numbers = list(value) if rule.type in (FLOATS, INTS) else [value]
    if len(numbers) > MAX_INTS:
        raise Refusal(
            f"the attribute {name!r} has {len(numbers):,} numbers; {MAX_INTS:,} are allowed"
        )
    for number in numbers:
        if not rule.low <= number <= rule.high:
            raise Refusal(f"the attribute {name!r} is {number}, not from {rule.low} to {rule.high}")
    return numbers if rule.type in (FLOATS, INTS) else value


def _no_tensor(name: str) -> Tensor:
    raise Refusal(f"the attribute {name!r} has no value")
