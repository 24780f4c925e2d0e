"""Tensors of an `.onnx` file: element types, shapes, and the values of small integer constants.

In shapes, and in constants computed from shapes, `N` stands for the number of images. A dimension
is a positive number, or a multiple of `N`: (N, 3, 224, 224) is a batch of images. `N` is a prime
larger than every permitted dimension. Therefore, `dim % N == 0` identifies multiples of `N`, also
after dimensions are multiplied or divided. At most one dimension of a tensor is a multiple of `N`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.onnx.wire import EXPORT_AGAIN, Decoded, Refusal

N = (1 << 31) - 1
"""Stands for the number of images. This number is prime."""
MAX_DIM = 1 << 24
"""Maximum length of a dimension, per image. Longer dimensions occur only in forged files: real
dimensions are shorter than 1 million."""
MAX_RANK = 8
"""Maximum number of dimensions. Swin transformers need 6."""
MAX_ELEMENTS = 1 << 25
"""Maximum number of elements of a computed tensor per image: 128 MiB in float32. EfficientNet-B7 at
600 x 600 needs 17 million. The convolutions of VGG-19 make matrices of 29 million elements."""
MAX_DATA = 1 << 6
"""Maximum number of elements of a constant that is read as a shape, as axes or as positions. Longer
constants are not read."""

Dims = tuple[int, ...]
Data = tuple[int, ...]

FLOAT, DOUBLE, HALF = np.dtype("f4"), np.dtype("f8"), np.dtype("f2")
INT32, INT64, INT8 = np.dtype("i4"), np.dtype("i8"), np.dtype("i1")
UINT8, BOOL = np.dtype("u1"), np.dtype("?")
FLOATS = (FLOAT, HALF, DOUBLE)
TYPES: dict[int, np.dtype[Any]] = {
    1: FLOAT,
    2: UINT8,
    3: INT8,
    6: INT32,
    7: INT64,
    9: BOOL,
    10: HALF,
    11: DOUBLE,
}
"""Element types by their code in the file."""
TYPED = {
    "float_data": (FLOAT,),
    "double_data": (DOUBLE,),
    "int64_data": (INT64,),
    "int32_data": (INT32, UINT8, INT8, BOOL, HALF),
}
"""Field that contains numbers -> element types that the field may contain."""
VARINTS = ("int64_data", "int32_data")
READ = (INT32, INT64, BOOL)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the graph."""

    dtype: np.dtype[Any]
    dims: Dims
    data: Data | None = None
    """Integer elements in C order, if they are known before the network runs. None: not known."""
    constant: bool = False
    """Whether the elements depend neither on the images nor on their number."""
    span: tuple[int, int] | None = None
    """Minimum and maximum element of an integer constant."""

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def elements(self) -> int:
        """Number of elements per image."""
        total = prod(self.dims)
        return total if total % N else total // N

    @property
    def bytes(self) -> int:
        """Number of bytes per image."""
        return self.elements * self.dtype.itemsize

    @property
    def batch_axis(self) -> int | None:
        """Index of the dimension that is a multiple of `N`. None: no dimension is a multiple."""
        return next((axis for axis, dim in enumerate(self.dims) if dim % N == 0), None)


def is_batch(number: int) -> bool:
    """Whether a number of a shape is a multiple of the number of images."""
    return number > 0 and number % N == 0


def is_small(*numbers: int) -> bool:
    """Whether sums and products of the numbers cannot be mistaken for a multiple of `N`."""
    return all(abs(number) <= MAX_DIM for number in numbers)


def is_exact(number: int) -> bool:
    """Whether the number is small (see `is_small`), or a small multiple of the number of images."""
    return is_small(number) or (is_batch(number) and is_small(number // N))


def check(tensor: Tensor) -> None:
    """Check the limits of a computed tensor. Raises Refusal."""
    dims = tensor.dims
    if len(dims) > MAX_RANK:
        raise Refusal(f"the result has {len(dims)} dimensions; {MAX_RANK} are allowed")
    if any(not 0 < (dim if dim % N else dim // N) <= MAX_DIM for dim in dims):
        raise Refusal(
            f"the result has the shape {text(dims)}; each dimension must be from 1 to {MAX_DIM:,}"
        )
    if sum(dim % N == 0 for dim in dims) > 1:
        raise Refusal(f"the result has the shape {text(dims)}, which combines different images")
    if tensor.elements > MAX_ELEMENTS and not tensor.constant:
        raise Refusal(
            f"the result has {tensor.elements:,} elements per image; {MAX_ELEMENTS:,} are allowed",
            "Use smaller images or a smaller network",
        )


def text(dims: Dims) -> str:
    """Return a shape for messages, such as (n, 3, 224, 224)."""
    names = [str(dim) if dim % N else "n" if dim == N else f"{dim // N}n" for dim in dims]
    return f"({', '.join(names)})"


def read(proto: Decoded, what: str) -> Tensor:
    """Check a TensorProto and return it.

    Args:
        proto: The decoded message.
        what: Name of the tensor in error messages.

    Raises:
        Refusal: The tensor has no elements, an unsupported type, or a payload of another size.
    """
    dtype = element_type(proto.get("data_type"), what)
    dims = tuple(proto["dims"])
    if len(dims) > MAX_RANK or any(not 0 < dim <= MAX_DIM for dim in dims):
        raise Refusal(
            f"{what} has the shape {dims[: MAX_RANK + 1]}; at most {MAX_RANK} dimensions are "
            f"allowed, and each dimension must be from 1 to {MAX_DIM:,}"
        )
    if proto.get("data_location", 0):
        raise Refusal(f"{what} has data in another file", "Save the network as a single file")
    stored = [name for name in ("raw_data", *TYPED) if name in proto]
    if len(stored) != 1:
        raise Refusal(f"{what} has {len(stored)} payloads instead of one")
    name, payload, count = stored[0], proto[stored[0]], prod(dims)
    if name in VARINTS and dtype in TYPED[name]:
        found = _count(payload)
    elif name == "raw_data" or dtype in TYPED[name]:
        found = len(payload) / dtype.itemsize
    else:
        raise Refusal(
            f"{what} stores elements of the type {dtype} in the field {name}, which cannot contain "
            "that type"
        )
    if found != count:
        raise Refusal(f"{what} has {found:,} elements instead of the {count:,} of its shape {dims}")
    if dtype not in READ or (name in VARINTS and count > MAX_DATA):
        return Tensor(dtype, dims, constant=True)
    numbers = _varints(payload) if name in VARINTS else np.frombuffer(payload, dtype)
    span = int(np.min(numbers)), int(np.max(numbers))
    # Libraries discard upper bits, and would read another number.
    if dtype is not INT64 and any(not -(1 << 31) <= number < 1 << 31 for number in span):
        raise Refusal(f"{what} contains a number that is not {dtype}")
    data = tuple(bounded(int(number)) for number in numbers) if count <= MAX_DATA else None
    return Tensor(dtype, dims, data, constant=True, span=span)


def element_type(code: int | None, what: str) -> np.dtype[Any]:
    """Return the element type with a code. Raises Refusal."""
    if code not in TYPES:
        known = ", ".join(map(str, TYPES.values()))
        raise Refusal(
            f"{what} has the element type code {code}. The supported types are {known}",
            EXPORT_AGAIN,
        )
    return TYPES[code]


def _count(payload: memoryview) -> float:
    """Return the number of variable-length integers."""
    octets: NDArray[np.uint8] = np.frombuffer(payload, np.uint8)
    if len(octets) and octets[-1] >= 0x80:
        raise Refusal("a tensor ends inside an integer")
    return int(np.count_nonzero(octets < 0x80))


def _varints(payload: memoryview) -> list[int]:
    """Decode a short list of varints as signed 64-bit integers."""
    numbers, value, shift = [], 0, 0
    for octet in payload:
        value |= (octet & 0x7F) << shift
        shift += 7
        if octet < 0x80:
            if value >> 64:
                raise Refusal("a tensor has an integer of more than 64 bits")
            numbers.append(value - (1 << 64) if value >> 63 else value)
            value = shift = 0
    return numbers


def bounded(number: int) -> int:
    """Limit a number of the file, so that it cannot be mistaken for a multiple of `N`.

    Exporters write the largest int64 for "to the end". This number becomes `N` - 1.
    """
    return max(-N + 1, min(N - 1, number))
