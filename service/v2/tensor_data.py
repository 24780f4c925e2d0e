"""Converts the data of an input tensor to image files or 8-bit pixels.

The data is a list in JSON, or binary data. All functions are pure. The functions raise BadInference
if the data does not match the datatype and shape of the tensor.
"""

from __future__ import annotations

import binascii
import math
import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from model_store.manifest import Normalization
from service.errors import BadInference
from service.v2.json_prescan import LongStrings
from service.v2.schemas import RequestInput

TOLERANCE = 0.02
"""Maximum difference between a denormalized pixel and a whole number. Rounding errors of FP32 cause
a difference of about 1e-4."""
PIECE = 512 * 1024
"""Number of base64 characters that are decoded in one step. A step takes about a millisecond. The
number must be a multiple of four."""

Encoded = Iterable[bytes]
"""The bytes of an image file, in pieces. Decoding a piece from base64 takes about a millisecond.
The iterator raises BadInference if the image is not valid base64."""
Numbers = npt.NDArray[np.float64]
"""The elements of a numeric tensor, in the shape of the tensor."""
Pixels = npt.NDArray[np.uint8]
"""Array of shape (n, 32, 32, 3): n images of height x width x RGB."""
Elements = list[Encoded] | Numbers
"""The elements of a tensor: a list for datatype BYTES, an array for UINT8 and FP32."""


def from_binary(tensor: RequestInput, data: memoryview) -> Elements:
    """Return the elements of `tensor` from its binary data."""
    if tensor.datatype == "BYTES":
        return _binary_strings(data, tensor.shape[0])
    return _binary_numbers(data, tensor)


def from_json(tensor: RequestInput, long_strings: LongStrings) -> Elements:
    """Return the elements of `tensor` from its JSON list `tensor.data`.

    `long_strings`: the strings that `json_prescan` replaced with placeholders in the list.
    """
    if tensor.datatype == "BYTES":
        return _json_strings(tensor, long_strings)
    return _json_numbers(tensor)


def whole_pixels(numbers: Numbers) -> Pixels:
    """Convert UINT8 pixels of shape (n, 32, 32, 3) from float64 to uint8."""
    if not ((numbers >= 0) & (numbers <= 255)).all():
        raise BadInference("An element of the input 'pixels' is not a UINT8 (0 to 255).")
    return numbers.astype(np.uint8)


def denormalized(numbers: Numbers, normalization: Normalization) -> Pixels:
    """Convert normalized pixels of shape (n, 3, 32, 32) to 8-bit pixels of shape (n, 32, 32, 3).

    Raises BadInference if a result is not a whole number from 0 to 255, within `TOLERANCE`.
    """
    mean, std = normalization.mean, normalization.std
    with np.errstate(invalid="ignore", over="ignore"):
        pixels = 255 * (numbers.transpose(0, 2, 3, 1) * std + mean)
        whole = np.rint(pixels)
        exact = (abs(pixels - whole) < TOLERANCE) & (whole >= 0) & (whole <= 255)
    if not exact.all():
        raise BadInference(
            "The FP32 values of the input 'pixels' do not correspond to 8-bit pixels, which the "
            "model requires. Normalize 8-bit pixels as (pixel / 255 - mean) / std, with mean "
            f"{list(mean)} and std {list(std)} for red, green and blue. Or send UINT8 pixels or "
            "image files."
        )
    result: Pixels = whole.astype(np.uint8)
    return result


def base64_pieces(text: str | memoryview) -> Iterator[bytes]:
    """Return an iterator that decodes base64 in pieces, each in about a millisecond.

    The function copies `text` immediately, so the caller may free `text`. Each piece of the copy is
    freed after it has been decoded. So the remaining text and the decoded pieces together take no
    more memory than `text`. The iterator raises BadInference if `text` is not valid base64.
    """
    copy: Any = bytes if isinstance(text, memoryview) else str
    pieces = [copy(text[start : start + PIECE]) for start in range(0, len(text), PIECE)]
    pieces.reverse()
    return _decode_base64(pieces)


def _decode_base64(pieces: list[str | bytes]) -> Iterator[bytes]:
    """Decode `pieces` from the last to the first. Removes each piece from the list."""
    while pieces:
        try:
            decoded = binascii.a2b_base64(pieces.pop(), strict_mode=True)
        except ValueError as error:
            raise BadInference(NOT_BASE64) from error
        if len(decoded) < PIECE // 4 * 3 and pieces:  # the text has padding before its end
            raise BadInference(NOT_BASE64)
        yield decoded
        del decoded


NOT_BASE64 = (
    "An element of the input 'image' is not valid base64 (RFC 4648, with padding). Send images as "
    "base64 strings in the JSON, or as raw image files in the binary data after the JSON."
)


def _binary_strings(data: memoryview, count: int) -> list[Encoded]:
    """Split binary data into `count` elements.

    Each element consists of its length, as a little-endian uint32, and that number of bytes.
    """
    elements: list[Encoded] = []
    start = 0
    while start + 4 <= len(data) and len(elements) < count:
        (size,) = struct.unpack_from("<I", data, start)
        start += 4 + size
        elements.append((bytes(data[start - size : start]),))
    if len(elements) != count or start != len(data):
        raise BadInference(
            f"The binary data does not consist of {count} elements of BYTES. Send the length of "
            "each element as a little-endian uint32, followed by the bytes of the element."
        )
    return elements


def _binary_numbers(data: memoryview, tensor: RequestInput) -> Numbers:
    dtype = np.dtype(np.uint8 if tensor.datatype == "UINT8" else "<f4")
    if len(data) != (size := math.prod(tensor.shape) * dtype.itemsize):
        raise BadInference(
            f"The binary data has {len(data):,} bytes, but datatype {tensor.datatype} and shape "
            f"{tensor.shape} need {size:,} bytes."
        )
    return np.frombuffer(data, dtype).astype(np.float64).reshape(tensor.shape)


def _json_strings(tensor: RequestInput, long_strings: LongStrings) -> list[Encoded]:
    texts = _flatten(tensor)
    if set(map(type, texts)) != {str}:
        raise BadInference("An element of the input 'image' is not a string. Send base64 strings.")
    return [base64_pieces(long_strings.get(text, text)) for text in texts]


def _json_numbers(tensor: RequestInput) -> Numbers:
    allowed = {int} if tensor.datatype == "UINT8" else {int, float}
    flat = _flatten(tensor)
    if not set(map(type, flat)) <= allowed:
        raise BadInference(f"An element of the input 'pixels' is not a {tensor.datatype}.")
    try:
        return np.array(flat, dtype=np.float64).reshape(tensor.shape)
    except OverflowError:
        raise BadInference(
            f"An element of the input 'pixels' is not a {tensor.datatype}."
        ) from None


def _flatten(tensor: RequestInput) -> list[Any]:
    """Return the elements of `tensor.data`, a list that is flat or nested like the shape."""
    flat = tensor.data or []
    if flat and type(flat[0]) is list:
        for size in tensor.shape[1:]:
            if any(type(row) is not list or len(row) != size for row in flat):
                raise BadInference(f"'data' is not nested according to the shape {tensor.shape}.")
            flat = list(chain.from_iterable(flat))
    if len(flat) != math.prod(tensor.shape):
        raise BadInference(
            f"'data' has {len(flat):,} elements, but the shape {tensor.shape} needs "
            f"{math.prod(tensor.shape):,} elements."
        )
    return flat
