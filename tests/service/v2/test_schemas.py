"""Tests that request bodies are validated strictly, and that the documented example is valid."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from service.errors import first_error
from service.v2.schemas import EXAMPLE, MAX_DIMENSIONS, InferenceRequest

TENSOR = {"name": "image", "shape": [1], "datatype": "BYTES"}


def validate(**members: Any) -> InferenceRequest:
    return InferenceRequest.model_validate_json(json.dumps({"inputs": [TENSOR]} | members))


def test_inference_request_accepts_the_example() -> None:
    """The example in the OpenAPI description is a valid request."""
    (tensor,) = InferenceRequest.model_validate_json(json.dumps(EXAMPLE)).inputs
    assert (tensor.name, tensor.shape, tensor.datatype) == ("image", [1], "BYTES")


def test_inference_request_ignores_unknown_members() -> None:
    """Members that only extensions of the protocol define are ignored."""
    assert validate(priority=1, inputs=[TENSOR | {"extension": {}}]).inputs[0].name == "image"


@pytest.mark.parametrize(
    ("members", "location"),
    [
        ({"inputs": []}, "inputs: "),
        ({"inputs": [TENSOR] * 5}, "inputs: "),
        ({"inputs": [TENSOR | {"shape": ["1"]}]}, "inputs.0.shape.0: "),
        ({"inputs": [TENSOR | {"shape": [1.0]}]}, "inputs.0.shape.0: "),
        ({"inputs": [TENSOR | {"shape": [1] * (MAX_DIMENSIONS + 1)}]}, "inputs.0.shape: "),
        ({"inputs": [TENSOR | {"name": "x" * 65}]}, "inputs.0.name: "),
        ({"outputs": [{}]}, "outputs.0.name: "),
        ({"id": "two\nlines"}, "id: "),
        ({"id": "x" * 1025}, "id: "),
        ({"parameters": []}, "parameters: "),
    ],
)
def test_inference_request_rejects_with_a_location(members: Any, location: str) -> None:
    """The error of an invalid member begins with its place in the body and is a sentence."""
    with pytest.raises(ValidationError) as caught:
        validate(**members)
    text = first_error(caught.value)
    assert text.startswith(location) and text.endswith(".")


def test_first_error_of_the_whole_body() -> None:
    """An error without a location names the body."""
    with pytest.raises(ValidationError) as caught:
        InferenceRequest.model_validate_json("[]")
    assert first_error(caught.value).startswith("The body: ")
