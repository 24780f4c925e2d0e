"""Tests the outputs of a response, byte for byte."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from service.v2.outputs import Reply, RequestedOutput, serialize
from tests.fakes import MODEL

ROWS = [np.full(10, 0.01, np.float32), np.full(10, 0.02, np.float32)]
ROWS[0][7] = 0.91
ROWS[1][3], ROWS[1][5] = 0.5, 0.34
CLASS = b"\x05\0\0\0horse\x03\0\0\0cat"


def answered(*outputs: RequestedOutput, request_id: str | None = None) -> tuple[Any, bytes]:
    """The JSON of the response, and the binary data after it."""
    body, length = serialize(Reply(request_id, outputs), MODEL, ROWS)
    return json.loads(body[:length]), b"" if length is None else body[length:]


def test_outputs_in_json() -> None:
    """JSON outputs are flat, in row-major order, and exact to the last bit of FP32."""
    body, binary = answered(
        RequestedOutput("class", False),
        RequestedOutput("probability", False),
        RequestedOutput("probabilities", False),
    )
    assert binary == b"" and list(body) == ["model_name", "model_version", "outputs"]
    assert (body["model_name"], body["model_version"]) == ("fake", "7")
    first, second, third = body["outputs"]
    assert first == {"name": "class", "datatype": "BYTES", "shape": [2], "data": ["horse", "cat"]}
    assert (second["datatype"], second["shape"]) == ("FP32", [2])
    assert np.array_equal(np.array(second["data"], np.float32), np.array([0.91, 0.5], np.float32))
    assert third["shape"] == [2, 10]
    assert np.array_equal(np.array(third["data"], np.float32).reshape(2, 10), np.stack(ROWS))


def test_outputs_in_binary() -> None:
    """Binary outputs follow the JSON in the order of the request, in the protocol's encoding."""
    body, binary = answered(
        RequestedOutput("probability", True),
        RequestedOutput("class", True),
        RequestedOutput("probabilities", False),
    )
    sizes = [output.get("parameters") for output in body["outputs"]]
    assert sizes == [{"binary_data_size": 8}, {"binary_data_size": len(CLASS)}, None]
    assert ["data" in output for output in body["outputs"]] == [False, False, True]
    assert binary == struct.pack("<2f", 0.91, 0.5) + CLASS


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_classification_lists_the_most_probable_classes(classes: int) -> None:
    """The most probable class is first. If more classes are requested than exist, all are sent."""
    body, _ = answered(RequestedOutput("probabilities", False, classes))
    (output,) = body["outputs"]
    count = min(classes, 10)
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, count])
    assert output["data"][0] == "0.910000:7:horse"
    assert output["data"][count] == "0.500000:3:cat"


def test_classification_in_binary() -> None:
    """In binary, each class is a string with its length."""
    _, binary = answered(RequestedOutput("probabilities", True, 1))
    assert binary == b"\x10\0\0\x000.910000:7:horse\x0e\0\0\x000.500000:3:cat"


@pytest.mark.parametrize("request_id", ["42", "", 'q"'])
def test_response_repeats_the_id(request_id: str) -> None:
    """The response has the id of the request, also if it is empty or needs escaping."""
    assert answered(RequestedOutput("class", False), request_id=request_id)[0]["id"] == request_id
