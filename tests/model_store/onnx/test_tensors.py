"""Parameters have the size that their shape needs, and shapes stay within limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_store.onnx import tensors
from model_store.onnx.messages import TENSOR
from model_store.onnx.tensors import FLOAT, MAX_DIM, MAX_ELEMENTS, N, Tensor, check, read, text
from model_store.onnx.wire import Refusal, decode

onnx = pytest.importorskip("onnx")


def parsed(proto: Any) -> Tensor:
    return read(decode(proto.SerializeToString(), TENSOR), "it")


@pytest.mark.parametrize("code", tensors.TYPES)
@pytest.mark.parametrize("raw", [False, True])
def test_read_accepts_every_element_type(code: int, raw: bool) -> None:
    """In raw bytes and in the field that is meant for the type."""
    dtype = tensors.TYPES[code]
    array = np.arange(6).astype(dtype).reshape(2, 3)
    values = array.tobytes() if raw else array.ravel().tolist()
    found = parsed(onnx.helper.make_tensor("a", code, (2, 3), values, raw))
    assert (found.dtype, found.dims, found.constant) == (dtype, (2, 3), True)
    assert (found.data is not None) == (dtype in tensors.READ)


def test_read_reads_small_integers() -> None:
    """Numbers that could be mistaken for the number of images become the largest below it."""
    numbers = [-3, 5, N, N * 7, (1 << 63) - 1, -(1 << 63)]
    for raw in (False, True):
        values = np.array(numbers, np.int64).tobytes() if raw else numbers
        found = parsed(onnx.helper.make_tensor("a", 7, (6,), values, raw))
        assert found.data == (-3, 5, N - 1, N - 1, N - 1, 1 - N)
        assert found.span == (-(1 << 63), (1 << 63) - 1)


def test_read_finds_the_span_of_many_integers() -> None:
    """Long constants are not read, but their bounds are known."""
    found = parsed(onnx.numpy_helper.from_array(np.arange(-5, 1000, dtype=np.int32), "a"))
    assert (found.data, found.span) == (None, (-5, 999))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.dims.append(0), r"it has the shape \(2, 0\); at most 8 dimensions"),
        (lambda t: t.dims.append(-1), "each dimension must be from 1 to"),
        (lambda t: t.dims.append(MAX_DIM + 1), "each dimension must be from 1 to"),
        (lambda t: t.dims.extend([1] * 8), "each dimension must be from 1 to"),
        (lambda t: t.dims.append(3), "it has 2.0 elements instead of the 6"),
        (lambda t: setattr(t, "raw_data", bytes(7)), "it has 1.75 elements instead of the 2"),
        (lambda t: t.float_data.extend([1, 2]), "it has 2 payloads instead of one"),
        (lambda t: t.ClearField("raw_data"), "it has 0 payloads instead of one"),
        (
            lambda t: setattr(t, "data_type", 8),
            "code 8. The supported types are float32",
        ),
        (lambda t: setattr(t, "data_type", 99), "it has the element type code 99"),
        (lambda t: t.ClearField("data_type"), "it has the element type code None"),
        (lambda t: setattr(t, "data_location", 1), "it has data in another file"),
        (lambda t: t.external_data.add(key="location"), "TensorProto has data in another file"),
        (lambda t: t.string_data.append(b"a"), "TensorProto has strings"),
        (
            lambda t: (t.ClearField("raw_data"), t.int64_data.extend([1, 2])),
            "in the field int64",
        ),
    ],
)
def test_read_rejects(change: Any, words: str) -> None:
    """Other element types, external data, and payloads of another size."""
    proto = onnx.numpy_helper.from_array(np.ones(2, np.float32), "a")
    change(proto)
    with pytest.raises(Refusal, match=words):
        parsed(proto)


def test_read_rejects_integers_that_libraries_would_cut() -> None:
    """An int32 that is stored in more bits, and integers that end inside a number."""
    proto = decode(onnx.helper.make_tensor("a", 6, (1,), [1]).SerializeToString(), TENSOR)
    for payload, words in (
        (b"\x80\x80\x80\x80\x10", "is not int32"),
        (b"\x80", "ends inside an integer"),
        (b"\xff" * 10 + b"\x01", "more than 64 bits"),
    ):
        with pytest.raises(Refusal, match=words):
            read({**proto, "int32_data": memoryview(payload)}, "it")


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        ((N, 0), "each dimension must be from 1 to"),
        ((-1, 2), "each dimension must be from 1 to"),
        ((N, MAX_DIM + 1), "each dimension must be from 1 to"),
        ((N * (MAX_DIM + 1),), "each dimension must be from 1 to"),
        ((N + 1,), "each dimension must be from 1 to"),
        ((N, N), r"\(n, n\), which combines different images"),
        ((1,) * 9, "9 dimensions; 8 are allowed"),
        ((N, 4, MAX_ELEMENTS // 4 + 1), "33,554,436 elements per image; 33,554,432 are allowed"),
    ],
)
def test_check_rejects(dims: tuple[int, ...], words: str) -> None:
    """One limit each."""
    with pytest.raises(Refusal, match=words):
        check(Tensor(FLOAT, dims))


def test_check_counts_elements_per_image() -> None:
    """The number of images does not count."""
    largest = Tensor(FLOAT, (2 * N, MAX_ELEMENTS // 2))
    check(largest)
    assert (largest.elements, largest.bytes) == (MAX_ELEMENTS, 4 * MAX_ELEMENTS)
    assert (largest.batch_axis, text(largest.dims)) == (0, "(2n, 16777216)")
