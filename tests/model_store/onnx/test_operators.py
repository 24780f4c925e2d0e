"""The operators that are accepted, and their attributes, are those of ONNX."""

from __future__ import annotations

import pytest

from model_store.onnx.operators import MAX_INPUTS, OPERATORS
from model_store.onnx.walk import STANDARD

onnx = pytest.importorskip("onnx")
KINDS = {"FLOAT": 1, "INT": 2, "STRING": 3, "TENSOR": 4, "FLOATS": 6, "INTS": 7}
VERSIONS = (13, 15, 17, 18, 20, 21)


@pytest.mark.parametrize("opset", VERSIONS)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_described_as_by_onnx(name: str, opset: int) -> None:
    """Accepted attributes exist in that operator set with that type, and inputs are as many."""
    operator = OPERATORS[name]
    if not onnx.defs.has(name, opset, STANDARD[0]):
        assert operator.since > opset
        return
    assert operator.since <= opset
    schema = onnx.defs.get_schema(name, opset)
    fewest, most = operator.inputs
    assert schema.min_input <= fewest and most <= max(schema.max_input, fewest + 4)
    assert operator.outputs <= schema.max_output
    assert operator.outputs in (1, MAX_INPUTS)
    for attribute, rule in operator.attributes.items():
        if rule.since <= opset <= rule.until and attribute not in ("block_size", "saturate"):
            assert KINDS[schema.attributes[attribute].type.name] == rule.type


@pytest.mark.parametrize(
    "name",
    [
        *("If", "Loop", "Scan", "NonZero", "Resize", "Tile", "ConvTranspose", "RandomNormal"),
        *("TopK", "Unique", "Compress", "StringNormalizer", "Range", "ImageDecoder"),
    ],
)
def test_operators_with_unknown_sizes_are_not_accepted(name: str) -> None:
    """Loops, sizes that depend on elements, randomness, strings, decoders."""
    assert name not in OPERATORS
