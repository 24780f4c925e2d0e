"""Rules of operators that move elements: the shapes that each operator accepts and returns.

Some exporters write operators that compute a shape from the shape of the images. The numbers of
such a shape are known before the network runs, and the rules compute these numbers as well. The
rules keep the images of a batch apart, as described in `layers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.onnx.layers import broadcast
from model_store.onnx.node import Node, Result, axes, axis, fixed
from model_store.onnx.tensors import (
    BOOL,
    FLOAT,
    INT64,
    MAX_DATA,
    MAX_DIM,
    Data,
    Dims,
    N,
    Tensor,
    bounded,
    is_batch,
    is_exact,
    is_small,
    text,
)
from model_store.onnx.wire import Refusal

OPEN_BATCH = "Export the network with an open batch size: dynamic_axes={'input': {0: 'n'}}"


def flatten(node: Node) -> Result:
    given = node.given(0)
    at = node.attributes.get("axis", 1)
    at = given.rank if at == given.rank else axis(at, given.rank)
    return _reshaped(given, (prod(given.dims[:at]), prod(given.dims[at:])))


def reshape(node: Node) -> Result:
    given, wanted = node.given(0), node.known(1)
    _check_list(node.given(1))
    if wanted.count(-1) > 1 or any(number < -1 for number in wanted):
        raise Refusal(f"the shape {wanted[:8]} is not valid")
    if not node.attributes.get("allowzero", 0):
        if any(number == 0 and at >= given.rank for at, number in enumerate(wanted)):
            raise Refusal(
                f"the shape {wanted[:8]} copies a dimension that {text(given.dims)} does not have"
            )
        wanted = tuple(number or given.dims[at] for at, number in enumerate(wanted))
    if -1 in wanted:
        others = -prod(wanted)
        if not others or prod(given.dims) % others:
            raise Refusal(f"{text(given.dims)} cannot get the shape {wanted[:8]}", OPEN_BATCH)
        wanted = tuple(prod(given.dims) // others if dim == -1 else dim for dim in wanted)
    return _reshaped(given, wanted)


def squeeze(node: Node) -> Result:
    given = node.given(0)
    if not node.input(1):
        raise Refusal("axes are missing, so the result depends on the number of images")
    removed = axes(node.known(1), given.rank)
    if any(given.dims[at] != 1 for at in removed):
        raise Refusal(f"the axes {removed} of {text(given.dims)} do not all have the length 1")
    return _reshaped(given, tuple(dim for at, dim in enumerate(given.dims) if at not in removed))


def unsqueeze(node: Node) -> Result:
    given, numbers = node.given(0), node.known(1)
    rank = given.rank + len(numbers)
    added = axes(numbers, rank)
    rest = iter(given.dims)
    return _reshaped(given, tuple(1 if at in added else next(rest) for at in range(rank)))


def transpose(node: Node) -> Result:
    given = node.given(0)
    order = axes(node.attributes.get("perm", [*range(given.rank)][::-1]), given.rank)
    if len(order) != given.rank:
        raise Refusal(f"perm {order} does not have {given.rank} numbers")
    dims = tuple(given.dims[at] for at in order)
    return Result([_moved(given, dims, lambda data: data.transpose(order))])


def concat(node: Node) -> Result:
    parts = [node.given(at) for at in range(len(node.inputs))]
    first = parts[0]
    at = axis(node.attributes.get("axis", first.rank), first.rank)
    for part in parts:
        if part.rank != first.rank or part.dtype != first.dtype:
            raise Refusal("the inputs differ in their type or in their number of dimensions")
        fixed(part.dims, at)
        if (*part.dims[:at], *part.dims[at + 1 :]) != (*first.dims[:at], *first.dims[at + 1 :]):
            raise Refusal(f"{text(first.dims)} and {text(part.dims)} do not fit in axis {at}")
    total = sum(part.dims[at] for part in parts)
    dims = (*first.dims[:at], total, *first.dims[at + 1 :])
    known = [part for part in parts if part.data is not None]
    data = None
    if len(known) == len(parts) and prod(dims) <= MAX_DATA:
        data = _flat(np.concatenate([_array(part) for part in parts], at))
    return Result([Tensor(first.dtype, dims, data)])


def slices(node: Node) -> Result:
    given, starts, ends = node.given(0), node.known(1), node.known(2)
    numbers = node.known(3) if node.input(3) else range(len(starts))
    steps = node.known(4) if node.input(4) else (1,) * len(starts)
    if not len(starts) == len(ends) == len(numbers) == len(steps):
        raise Refusal("starts, ends, axes and steps have different lengths")
    cuts = [slice(None)] * given.rank
    dims = [*given.dims]
    for at, start, end, step in zip(axes(numbers, given.rank), starts, ends, steps, strict=True):
        if dims[at] % N == 0:
            if start or step != 1 or end not in (N - 1, dims[at]):
                fixed(given.dims, at)
            continue
        if step == 0 or any(number > 0 and number % N == 0 for number in (start, end, step)):
            raise Refusal(f"the slice of axis {at} depends on the number of images, or has step 0")
        cuts[at] = slice(start, end, step)
        dims[at] = len(range(*cuts[at].indices(dims[at])))
    return Result([_moved(given, tuple(dims), lambda data: data[tuple(cuts)])])


def split(node: Node) -> Result:
    given = node.given(0)
    at = axis(node.attributes.get("axis", 0), given.rank)
    fixed(given.dims, at)
    length, count = given.dims[at], node.outputs
    if node.input(1):
        sizes: Sequence[int] = node.known(1)
    else:
        if node.attributes.get("num_outputs", count) != count:
            raise Refusal(f"num_outputs is not {count}")
        chunk = -(-length // count)
        sizes = [chunk] * (count - 1) + [length - chunk * (count - 1)]
        if sizes[-1] != chunk and node.opset < 18:
            raise Refusal(f"{length} cannot be split into {count} equal parts")
    if len(sizes) != count or sum(sizes) != length or min(sizes) < 1:
        raise Refusal(f"{length} cannot be split into {[*sizes[:8]]}")
    parts, begin = [], 0
    for size in sizes:
        cut = (*[slice(None)] * at, slice(begin, begin + size))
        dims = (*given.dims[:at], size, *given.dims[at + 1 :])
        parts.append(_moved(given, dims, lambda data, cut=cut: data[cut]))
        begin += size
    return Result(parts)


def gather(node: Node) -> Result:
    given, indices = node.given(0), node.given(1)
    at = axis(node.attributes.get("axis", 0), given.rank)
    fixed(given.dims, at)
    low, high = indices.span or (min(known := node.known(1)), max(known))
    if low < -given.dims[at] or high >= given.dims[at]:
        raise Refusal(f"the indices {low} to {high} are not in axis {at} of {text(given.dims)}")
    dims = (*given.dims[:at], *indices.dims, *given.dims[at + 1 :])
    if indices.data is None:
        return Result([Tensor(given.dtype, dims)])
    places = np.array(indices.data, np.int64).reshape(indices.dims)
    return Result([_moved(given, dims, lambda data: data.take(places, at))])


def pad(node: Node) -> Result:
    given, pads = node.given(0), node.known(1)
    numbers = node.known(3) if node.input(3) else range(given.rank)
    value = node.input(2)
    if value and (value.elements != 1 or value.dtype != given.dtype):
        raise Refusal(f"the constant is not one {given.dtype} number")
    if len(pads) != 2 * len(numbers) or min(pads, default=0) < 0:
        raise Refusal(f"pads {pads[:8]} are negative or do not fit {text(given.dims)}")
    dims = [*given.dims]
    for which, at in enumerate(axes(numbers, given.rank)):
        begin, end = pads[which], pads[which + len(numbers)]
        if begin or end:
            fixed(given.dims, at)
        if node.attributes.get("mode") == "reflect" and max(begin, end) >= dims[at] > 0:
            raise Refusal(f"the reflected border is not smaller than axis {at}")
        dims[at] += begin + end
    return Result([Tensor(given.dtype, tuple(dims))])


def expand(node: Node) -> Result:
    given, wanted = node.given(0), node.known(1)
    _check_list(node.given(1))
    dims = broadcast(given.dims, wanted)
    return Result([Tensor(given.dtype, dims)])


def shape(node: Node) -> Result:
    dims = node.given(0).dims
    cut = slice(node.attributes.get("start", 0), node.attributes.get("end", len(dims)))
    found = dims[cut]
    return Result([Tensor(INT64, (len(found),), found)])


def constant(node: Node) -> Result:
    if len(node.attributes) != 1:
        raise Refusal("the operator does not have exactly one value")
    (value,) = node.attributes.values()
    if isinstance(value, Tensor):
        return Result([value])
    numbers = value if isinstance(value, list) else [value]
    dims = (len(numbers),) if isinstance(value, list) else ()
    if "int" not in next(iter(node.attributes)):
        return Result([Tensor(FLOAT, dims)])
    data = tuple(map(bounded, numbers)) if len(numbers) <= MAX_DATA else None
    return Result([Tensor(INT64, dims, data)])


def constant_of_shape(node: Node) -> Result:
    dims = node.known(0)
    _check_list(node.given(0))
    value = node.attributes.get("value") or Tensor(FLOAT, (1,))
    if value.elements != 1:
        raise Refusal(f"the value has the shape {text(value.dims)} instead of (1)")
    data = value.data if 0 <= prod(dims) <= MAX_DATA else None
    return Result([Tensor(value.dtype, dims, data and data * prod(dims))])


def identity(node: Node) -> Result:
    given = node.given(0)
    return Result([Tensor(given.dtype, given.dims, given.data)])


def dropout(node: Node) -> Result:
    if node.input(2) and any(node.known(2)):
        raise Refusal("training_mode is set", "Export the network for inference")
    return Result([Tensor(node.given(0).dtype, node.given(0).dims)])


def where(node: Node) -> Result:
    condition, yes, no = (node.given(at) for at in range(3))
    if condition.dtype != BOOL or yes.dtype != no.dtype:
        raise Refusal("the condition is not bool, or the two inputs have different types")
    dims = broadcast(condition.dims, yes.dims, no.dims)
    data = _combined(dims, [condition, yes, no], lambda first, a, b: a if first else b)
    return Result([Tensor(yes.dtype, dims, data)])


def elementwise(node: Node) -> Result:
    """Add, Sub, Mul, Div, Pow, Min, Max and Equal."""
    parts = [node.given(at) for at in range(len(node.inputs))]
    dtype = parts[0].dtype
    if any(part.dtype != dtype for part in parts[1:]) and node.op != "Pow":
        raise Refusal("the inputs have different types")
    dims = broadcast(*(part.dims for part in parts))
    rule = ARITHMETIC.get(node.op)
    data = _combined(dims, parts, rule) if rule else None
    return Result([Tensor(BOOL if node.op == "Equal" else dtype, dims, data)])


def _add(a: int, b: int) -> int | None:
    return a + b if is_small(a, b) else None


def _subtract(a: int, b: int) -> int | None:
    return a - b if is_small(a, b) else None


def _multiply(a: int, b: int) -> int | None:
    if is_small(a, b):
        return a * b
    a, b = max(a, b), min(a, b)
    return a * b if is_batch(a) and b > 0 and is_small(a // N * b) else None


def _divide(a: int, b: int) -> int | None:
    if is_small(a, b) and b:
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a // b if is_batch(a) and 0 < b <= MAX_DIM and a // N % b == 0 else None


def _equal(a: int, b: int) -> int | None:
    if is_small(a, b):
        return int(a == b)
    # The number of images is positive, but otherwise not known.
    a, b = max(a, b), min(a, b)
    return 0 if is_batch(a) and is_small(b) and b <= 0 else None


ARITHMETIC = {
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Equal": _equal,
}
"""Functions for the integer arithmetic of shapes. A function returns None if the result is neither
a fixed number nor a fixed multiple of the number of images."""


def _combined(dims: Dims, parts: Sequence[Tensor], rule: Any) -> Data | None:
    """Return the elements of an elementwise operator, if they are known."""
    if prod(dims) > MAX_DATA or any(part.data is None for part in parts):
        return None
    columns = [np.broadcast_to(_array(part), dims).ravel().tolist() for part in parts]
    found = [rule(*column) for column in zip(*columns, strict=True)]
    return (
        tuple(found) if all(number is not None and is_exact(number) for number in found) else None
    )


def _array(tensor: Tensor) -> NDArray[Any]:
    """Return known elements as Python integers, which do not overflow."""
    return np.array(tensor.data, object).reshape(tensor.dims)


def _flat(data: Any) -> Data:
    return tuple(np.asarray(data, object).ravel().tolist())


def _moved(given: Tensor, dims: Dims, move: Any) -> Tensor:
    data = None if given.data is None or prod(dims) > MAX_DATA else _flat(move(_array(given)))
    return Tensor(given.dtype, dims, data)


def _reshaped(given: Tensor, dims: Dims) -> Result:
    """Return a tensor with the same elements in the same order. Images must not be mixed."""
    if prod(dims) != prod(given.dims):
        raise Refusal(f"{text(given.dims)} cannot get the shape {text(dims)}", OPEN_BATCH)
    output = Tensor(given.dtype, dims, given.data)
    if prod(dims[: output.batch_axis]) != prod(given.dims[: given.batch_axis]):
        raise Refusal(f"the shape {text(dims)} would mix the images of {text(given.dims)}")
    return Result([output])


def _check_list(tensor: Tensor) -> None:
    if tensor.rank != 1:
        raise Refusal(
            f"a shape must be a list of numbers, not a tensor of the shape {text(tensor.dims)}"
        )
