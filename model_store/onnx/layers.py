"""Infers the shapes and the cost of ONNX operators that compute on images.

The function of an operator takes a node, and returns its outputs and its cost. The function raises
Refusal if the inputs are not valid, or if the result for an image would depend on other images of
the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from model_store.onnx.node import Node, Result, axes, axis, fixed
from model_store.onnx.tensors import (
    FLOATS,
    INT8,
    INT32,
    INT64,
    MAX_ELEMENTS,
    UINT8,
    Dims,
    Tensor,
    element_type,
    is_exact,
    text,
)
from model_store.onnx.wire import Refusal


def activation(node: Node) -> Result:
    given = floating(node.given(0))
    return Result([Tensor(given.dtype, given.dims)])


def clip(node: Node) -> Result:
    given = node.given(0)
    for at in (1, 2):
        bound = node.input(at)
        if bound and (bound.elements != 1 or bound.rank > 1 or bound.dtype != given.dtype):
            raise Refusal(f"input {at} is not a single {given.dtype} number")
    return Result([Tensor(given.dtype, given.dims)])


def prelu(node: Node) -> Result:
    given, slope = floating(node.given(0)), floating(node.given(1))
    if broadcast(given.dims, slope.dims) != given.dims:
        raise Refusal(
            f"the slope has the shape {text(slope.dims)}, which cannot be broadcast to "
            f"{text(given.dims)}"
        )
    return Result([Tensor(given.dtype, given.dims)])


def normalized(node: Node) -> Result:
    """BatchNormalization and InstanceNormalization: parameters have one number per channel."""
    given = floating(node.given(0))
    if given.rank < (3 if node.op == "InstanceNormalization" else 2):
        raise Refusal(f"the input has the shape {text(given.dims)}, which is not a shape of images")
    fixed(given.dims, *range(1, given.rank))
    for at in range(1, len(node.inputs)):
        if floating(node.given(at)).dims != given.dims[1:2]:
            raise Refusal(f"input {at} does not have one number for each of the channels")
    return Result([Tensor(given.dtype, given.dims)])


def layer_normalization(node: Node) -> Result:
    given = floating(node.given(0))
    first = axis(node.attributes.get("axis", -1), given.rank)
    fixed(given.dims, *range(first, given.rank))
    for at in range(1, len(node.inputs)):
        if floating(node.given(at)).dims != given.dims[first:]:
            raise Refusal(f"input {at} does not have the shape {text(given.dims[first:])}")
    return Result([Tensor(given.dtype, given.dims)])


def softmax(node: Node) -> Result:
    given = floating(node.given(0))
    fixed(given.dims, axis(node.attributes.get("axis", -1), given.rank))
    return Result([Tensor(given.dtype, given.dims)])


def lrn(node: Node) -> Result:
    given = _image(floating(node.given(0)))
    size = node.attributes.get("size", 1)
    if size % 2 == 0 or given.rank != 4:
        raise Refusal(f"size is {size}, which is not odd, or the input is not a batch of images")
    return Result([Tensor(given.dtype, given.dims)], given.elements * size)


def conv(node: Node) -> Result:
    given, weight = _image(floating(node.given(0))), floating(node.given(1))
    bias, group = node.input(2), node.attributes.get("group", 1)
    fixed(weight.dims, *range(weight.rank))
    if weight.rank != given.rank or given.dims[1] != weight.dims[1] * group:
        raise Refusal(
            f"the weights have the shape {text(weight.dims)} in {group} groups, which cannot be "
            f"applied to an input of the shape {text(given.dims)}"
        )
    filters, channels, *kernel = weight.dims
    if filters % group:
        raise Refusal(f"{filters} filters are not a multiple of {group} groups")
    if bias and bias.dims != (filters,):
        raise Refusal(f"the bias {text(bias.dims)} does not have {filters} numbers")
    if node.attributes.get("kernel_shape", kernel) != kernel:
        raise Refusal(f"kernel_shape is not equal to the kernel shape of the weights, {kernel}")
    places = windows(node, given.dims[2:], kernel)
    output = Tensor(given.dtype, (given.dims[0], filters, *places))
    # Libraries may copy all windows of an image into a matrix.
    copied = prod(places) * channels * prod(kernel)
    if copied > MAX_ELEMENTS:
        raise Refusal(
            f"the im2col matrix of one image has {copied:,} elements; at most {MAX_ELEMENTS:,} are "
            "allowed",
            "Use smaller images or smaller kernels",
        )
    operations = output.elements * channels * prod(kernel)
    return Result([output], operations, copied * given.dtype.itemsize)


def pool(node: Node) -> Result:
    given = _image(node.given(0))
    if node.op == "AveragePool":
        floating(given)
    kernel = node.attributes.get("kernel_shape", [])
    if len(kernel) != given.rank - 2:
        raise Refusal(
            f"kernel_shape {kernel} has {len(kernel)} dimensions, but the input has "
            f"{given.rank - 2} spatial dimensions"
        )
    if any(pad >= kernel[at % len(kernel)] for at, pad in enumerate(_pads(node, len(kernel)))):
        raise Refusal("the padding is not smaller than the kernel")
    places = windows(node, given.dims[2:], kernel)
    output = Tensor(given.dtype, (*given.dims[:2], *places))
    return Result([output], output.elements * prod(kernel))


def global_pool(node: Node) -> Result:
    given = _image(floating(node.given(0)))
    return Result([Tensor(given.dtype, (*given.dims[:2], *(1,) * (given.rank - 2)))])


def reduce(node: Node) -> Result:
    given = floating(node.given(0))
    numbers = node.known(1) if node.input(1) else node.attributes.get("axes", ())
    if not numbers and node.attributes.get("noop_with_empty_axes", 0):
        return Result([Tensor(given.dtype, given.dims)])
    over = axes(numbers, given.rank) if numbers else list(range(given.rank))
    fixed(given.dims, *over)
    kept = node.attributes.get("keepdims", 1)
    dims = [1 if at in over else dim for at, dim in enumerate(given.dims) if kept or at not in over]
    return Result([Tensor(given.dtype, tuple(dims))])


def gemm(node: Node) -> Result:
    left, right, added = floating(node.given(0)), floating(node.given(1)), node.input(2)
    if left.rank != 2 or right.rank != 2 or left.dtype != right.dtype:
        raise Refusal(
            f"the inputs {text(left.dims)} ({left.dtype}) and {text(right.dims)} ({right.dtype}) "
            "must be matrices of the same type"
        )
    a, b = left.dims, right.dims
    a = a[::-1] if node.attributes.get("transA", 0) else a
    b = b[::-1] if node.attributes.get("transB", 0) else b
    output = Tensor(left.dtype, _product(a, b))
    if added and broadcast(added.dims, output.dims) != output.dims:
        raise Refusal(f"{text(added.dims)} cannot be added to {text(output.dims)}")
    return Result([output], output.elements * a[1])


def matmul(node: Node) -> Result:
    left, right = node.given(0), node.given(1)
    if left.rank < 2 or right.rank < 2 or left.dtype != right.dtype:
        raise Refusal(
            f"the inputs {text(left.dims)} ({left.dtype}) and {text(right.dims)} ({right.dtype}) "
            "must be matrices of the same type"
        )
    matrix = _product(left.dims[-2:], right.dims[-2:])
    output = Tensor(left.dtype, broadcast(left.dims[:-2], right.dims[:-2]) + matrix)
    return Result([output], output.elements * left.dims[-1])


def quantize(node: Node) -> Result:
    given, zero = floating(node.given(0)), node.input(2)
    _check_scales(node, given)
    code = node.attributes.get("output_dtype", 0)
    declared = element_type(code, "output_dtype") if code else None
    dtype = zero.dtype if zero else declared or UINT8
    if dtype not in (UINT8, INT8) or declared not in (None, dtype):
        raise Refusal(f"the result is {dtype}; int8 and uint8 are supported")
    return Result([Tensor(dtype, given.dims)])


def dequantize(node: Node) -> Result:
    given, zero = node.given(0), node.input(2)
    if given.dtype not in (UINT8, INT8, INT32) or (zero and zero.dtype != given.dtype):
        raise Refusal(f"the input is {given.dtype}; int8, uint8 and int32 are supported")
    return Result([Tensor(_check_scales(node, given).dtype, given.dims)])


def cast(node: Node) -> Result:
    given = node.given(0)
    dtype = element_type(node.attributes.get("to"), "the attribute 'to'")
    keeps = given.data and dtype in (INT32, INT64) and all(map(is_exact, given.data))
    return Result([Tensor(dtype, given.dims, given.data if keeps else None)])


def floating(tensor: Tensor) -> Tensor:
    """Return the tensor. Raises Refusal if its elements are not floating-point numbers."""
    if tensor.dtype not in FLOATS:
        raise Refusal(f"an input is {tensor.dtype}, not floating-point")
    return tensor


def broadcast(*shapes: Dims) -> Dims:
    """Return the shape of an elementwise operator. Raises Refusal."""
    rank = max(map(len, shapes))
    dims = []
    for column in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        lengths = {*column} - {1}
        if len(lengths) > 1:
            found = " and ".join(text(shape) for shape in shapes[:3])
            raise Refusal(f"the shapes {found} cannot be broadcast for every batch size n")
        dims.append(lengths.pop() if lengths else 1)
    return tuple(dims)


def windows(node: Node, lengths: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Return the number of windows of a convolution or pooling in each dimension.

    Args:
        node: The node.
        lengths: Lengths of the input's spatial dimensions.
        kernel: Lengths of the kernel.

    Raises:
        Refusal: An attribute does not fit the number of dimensions, or no window fits.
    """
    rank = len(lengths)
    strides = node.attributes.get("strides", [1] * rank)
    dilations = node.attributes.get("dilations", [1] * rank)
    pads = _pads(node, rank)
    mode = node.attributes.get("auto_pad", "NOTSET")
    if len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank:
        raise Refusal("strides, dilations or pads do not fit the number of dimensions")
    if mode != "NOTSET" and any(pads):
        raise Refusal(f"auto_pad is {mode}, but there are pads")
    if mode.startswith("SAME"):
        if {*dilations} != {1}:
            what = f"auto_pad {mode} is not supported with dilations other than 1"
            raise Refusal(what, "Export the network with explicit pads")
        return [-(-length // stride) for length, stride in zip(lengths, strides, strict=True)]
    found = []
    for at, (length, stride) in enumerate(zip(lengths, strides, strict=True)):
        begin, padded = pads[at], length + pads[at] + pads[at + rank]
        room = padded - dilations[at] * (kernel[at] - 1) - 1
        if room < 0:
            raise Refusal(f"the kernel is larger than the padded input, {padded}")
        count = room // stride + 1
        if node.attributes.get("ceil_mode", 0):
            count = -(-room // stride) + 1
            count -= (count - 1) * stride >= length + begin
        found.append(count)
    return found


def _pads(node: Node, rank: int) -> Sequence[int]:
    pads: Sequence[int] = node.attributes.get("pads", [0] * 2 * rank)
    return pads


def _image(tensor: Tensor) -> Tensor:
    """Return `tensor` if its shape is (images, channels, one to three lengths). Raises Refusal."""
    if not 3 <= tensor.rank <= 5:
        raise Refusal(f"an input has the shape {text(tensor.dims)}, which is not a shape of images")
    fixed(tensor.dims, *range(1, tensor.rank))
    return tensor


def _product(a: Dims, b: Dims) -> Dims:
    fixed(a, 1)
    if a[1] != b[0]:
        raise Refusal(f"the matrices {text(a)} and {text(b)} cannot be multiplied")
    return a[0], b[1]


def _check_scales(node: Node, given: Tensor) -> Tensor:
    """Return the scales of a quantization: one scale, or one scale for each index of an axis."""
    scale, zero = floating(node.given(1)), node.input(2)
    # Quantizers store one scale as a list and its zero point as a number.
    if zero and zero.dims != scale.dims and zero.elements * scale.elements != 1:
        raise Refusal("the scales and the zero points have different shapes")
    if scale.rank > 1 or (scale.rank == 1 and scale.dims != (1,)):
        at = axis(node.attributes.get("axis", 1), given.rank)
        fixed(given.dims, at)
        if scale.dims != (given.dims[at],):
            raise Refusal(
                f"the scales have the shape {text(scale.dims)}; axis {at} needs {given.dims[at]} "
                "scales"
            )
    return scale
