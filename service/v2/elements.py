"""The elements of an input tensor, in JSON or in binary: images as bytes or as pixels. Pure.

Each raises BadInference for what does not fit the tensor's type and shape.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from model_store.manifest import Normalization
from service.errors import BadInference
from service.v2.prescan import Aside, base64_pieces
from service.v2.schemas import RequestInput

TOLERANCE = 0.02
"""How far from a whole number a pixel may be after normalising in FP32 and back: 1e-4 is usual."""

Encoded = Iterable[bytes]
"""The bytes of an encoded image in pieces, each soon done; raises BadInference on the way."""
Numbers = npt.NDArray[np.float64]
"""Of the tensor's shape."""
Pixels = npt.NDArray[np.uint8]
"""(n, 32, 32, 3), RGB, height x width x channel."""
Elements = list[Encoded] | Numbers
"""Of BYTES, and of the other types."""


def in_binary(tensor: RequestInput, raw: memoryview) -> Elements:
    """Of a tensor whose binary data is `raw`."""
    if tensor.datatype == "BYTES":
        return binary_strings(raw, tensor.shape[0])
    return binary_numbers(raw, tensor)


def in_json(tensor: RequestInput, aside: Aside) -> Elements:
    """Of a tensor whose `data` has its elements."""
    return json_strings(tensor, aside) if tensor.datatype == "BYTES" else json_numbers(tensor)


def binary_strings(raw: memoryview, count: int) -> list[Encoded]:
    """Of binary BYTES: each is a little-endian uint32, and that many bytes."""
    elements: list[Encoded] = []
    start = 0
    while start + 4 <= len(raw) and len(elements) < count:
        (size,) = struct.unpack_from("<I", raw, start)
        start += 4 + size
        elements.append((bytes(raw[start - size : start]),))
    if len(elements) != count or start != len(raw):
        raise BadInference(
            f"The binary data is not {count} elements of BYTES, each of them its length as a "
            "little-endian uint32 and that many bytes."
        )
    return elements


def json_strings(tensor: RequestInput, aside: Aside) -> list[Encoded]:
    """Of BYTES in JSON."""
    texts = _flat(tensor)
    if set(map(type, texts)) != {str}:
        raise BadInference("An element of the input 'image' is no string.")
    return [base64_pieces(aside.get(text, text)) for text in texts]


def json_numbers(tensor: RequestInput) -> Numbers:
    """Of UINT8 or FP32 in JSON."""
    allowed = {int} if tensor.datatype == "UINT8" else {int, float}
    flat = _flat(tensor)
    if not set(map(type, flat)) <= allowed:
        raise BadInference(f"An element of the input 'pixels' is no {tensor.datatype}.")
    try:
        return np.array(flat, dtype=np.float64).reshape(tensor.shape)
    except OverflowError:
        raise BadInference(f"An element of the input 'pixels' is no {tensor.datatype}.") from None


def _flat(tensor: RequestInput) -> list[Any]:
    """The elements of `data`, which is nested as the shape says or flat already."""
    flat = tensor.data or []
    if flat and type(flat[0]) is list:
        for size in tensor.shape[1:]:
            if any(type(row) is not list or len(row) != size for row in flat):
                raise BadInference(f"'data' is not nested as the shape says: {tensor.shape}.")
            flat = list(chain.from_iterable(flat))
    if len(flat) != math.prod(tensor.shape):
        raise BadInference(
            f"'data' has {len(flat):,} elements and the shape {tensor.shape} "
            f"{math.prod(tensor.shape):,}."
        )
    return flat


def binary_numbers(raw: memoryview, tensor: RequestInput) -> Numbers:
    """Of binary UINT8 or FP32."""
    dtype = np.dtype(np.uint8 if tensor.datatype == "UINT8" else "<f4")
    if len(raw) != (size := math.prod(tensor.shape) * dtype.itemsize):
        raise BadInference(
            f"The binary data has {len(raw):,} bytes, and {tensor.datatype} {tensor.shape} "
            f"{size:,}."
        )
    return np.frombuffer(raw, dtype).astype(np.float64).reshape(tensor.shape)


def whole_pixels(numbers: Numbers) -> Pixels:
    """uint8 (n, 32, 32, 3) of the same."""
    if not ((numbers >= 0) & (numbers <= 255)).all():
        raise BadInference("An element of the input 'pixels' is no UINT8: 0 to 255.")
    return numbers.astype(np.uint8)


def denormalised(numbers: Numbers, normalisation: Normalization) -> Pixels:
    """uint8 (n, 32, 32, 3) from what the network would see, (n, 3, 32, 32)."""
    mean, std = normalisation.mean, normalisation.std
    with np.errstate(invalid="ignore", over="ignore"):
        pixels = 255 * (numbers.transpose(0, 2, 3, 1) * std + mean)
        whole = np.rint(pixels)
        exact = (abs(pixels - whole) < TOLERANCE) & (whole >= 0) & (whole <= 255)
    if not exact.all():
        raise BadInference(
            "The input 'pixels' of FP32 is not (pixel / 255 - mean) / std of 8-bit pixels, with "
            f"mean {list(mean)} and std {list(std)} for red, green and blue. The network is given "
            "8-bit pixels, and these would have to be rounded. Send UINT8, or the image itself."
        )
    pixels_again: Pixels = whole.astype(np.uint8)
    return pixels_again
