"""The bodies of the Open Inference Protocol v2 over REST: read, checked and described by these.

Shapes only, as https://github.com/kserve/open-inference-protocol has them. What a tensor must be
for this model is in `tensors`. Members that nobody here knows are passed over, as the protocol
wants for its extensions.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.http.problems import REQUEST_ID, SERVER_TIMING

Parameters = dict[str, Any]
MAX_DIMENSIONS = 8
"""Of a tensor's shape."""


class _Read(BaseModel):
    """Nothing is converted: "1" is no number. Lists are bounded where each item is checked."""

    model_config = ConfigDict(strict=True, frozen=True)


class RequestInput(_Read):
    """A tensor: its elements in `data`, or behind the JSON where `binary_data_size` is set."""

    name: str = Field(max_length=64, examples=["image", "pixels"])
    shape: list[int] = Field(
        min_length=1, max_length=MAX_DIMENSIONS, examples=[[1], [1, 32, 32, 3]]
    )
    datatype: str = Field(max_length=16, examples=["BYTES", "UINT8", "FP32"])
    parameters: Parameters = Field(default={}, description="`binary_data_size`")
    data: list[Any] | None = Field(
        default=None,
        description="nested or flat, in row-major order; of BYTES, strings in base64",
    )


class RequestOutput(_Read):
    """An output that is wanted, and how."""

    name: str = Field(max_length=64, examples=["class", "probability", "probabilities"])
    parameters: Parameters = Field(
        default={},
        description="`binary_data`: behind the JSON; `classification`: of `probabilities`, that "
        "many of the most probable classes as BYTES, probability:index:class",
    )


class InferenceRequest(_Read):
    """One input of n images, and the outputs that are wanted: all, where none is named."""

    id: str | None = Field(
        default=None, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]*$", description="comes back"
    )
    parameters: Parameters = Field(
        default={},
        description="`timeout`: microseconds in which the answer is wanted; `binary_data_output`: "
        "all outputs behind the JSON",
    )
    inputs: list[RequestInput] = Field(min_length=1, max_length=4)
    outputs: list[RequestOutput] | None = Field(default=None, max_length=16)


class ResponseOutput(BaseModel):
    """A tensor, flat and in row-major order."""

    name: str = Field(examples=["probability"])
    datatype: str = Field(examples=["FP32"])
    shape: list[int] = Field(examples=[[1]])
    parameters: Parameters = Field(default={}, description="`binary_data_size`")
    data: list[str | float] = Field(default=[], examples=[[0.9971]])


class InferenceResponse(BaseModel):
    model_name: str = Field(examples=["cifar_resnet20_v1"])
    model_version: str = Field(examples=["1"])
    id: str = Field(default="", description="the request's, if it has one")
    outputs: list[ResponseOutput]


class RepositoryIndexRequest(_Read):
    ready: bool = Field(default=False, description="only what is READY")


class RepositoryRequest(_Read):
    parameters: Parameters = Field(
        default={},
        description="of a load: `version`, the one to serve",
        examples=[{"version": "2"}],
    )


class RepositoryVersion(BaseModel):
    """A version of the model."""

    name: str = Field(examples=["cifar_resnet20_v1"])
    version: str = Field(examples=["2"])
    state: str = Field(examples=["READY"], description="READY, LOADING or UNAVAILABLE")
    reason: str = Field(examples=[""], description="why it is not READY")


class RepositoryAnswer(BaseModel):
    """The version that serves after a load, or served before an unload."""

    name: str = Field(examples=["cifar_resnet20_v1"])
    version: str = Field(examples=["2"])


class InferenceError(BaseModel):
    error: str = Field(description="what happened and what to do")


class ServerMetadata(BaseModel):
    name: str = Field(examples=["shoal"])
    version: str = Field(examples=["0.2.0"])
    extensions: list[str] = Field(examples=[["binary_tensor_data", "classification"]])


class TensorMetadata(BaseModel):
    name: str = Field(examples=["image"])
    datatype: str = Field(examples=["BYTES"])
    shape: list[int] = Field(description="-1: any number of images", examples=[[-1]])


class ModelMetadata(BaseModel):
    """`inputs` are alternatives: a request has one of them."""

    name: str = Field(examples=["cifar_resnet20_v1"])
    versions: list[str] = Field(examples=[["1"]])
    platform: str = Field(examples=["mxnet_gluon"])
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerLive(BaseModel):
    live: bool = Field(examples=[True])


class ServerReady(BaseModel):
    ready: bool = Field(examples=[True])


class ModelReady(BaseModel):
    name: str = Field(examples=["cifar_resnet20_v1"])
    ready: bool = Field(examples=[True])


def fault(error: ValidationError) -> str:
    """The first thing that is wrong with a body, as a sentence."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "The body"
    return f"{where}: {first['msg']}."


# As OpenAPI describes what pydantic does not see: we read and write these bodies ourselves.

LENGTH_HEADER = "Inference-Header-Content-Length"
LENGTH = {
    "description": "Bytes of the JSON, where binary data follows it",
    "schema": {"type": "integer", "minimum": 1},
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGOw6TkBAAKYAZFkYbNGAAAAAElFTkSuQmCC"
EXAMPLE = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [DOT]}]}
REQUEST = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/InferenceRequest"},
            "examples": {"a PNG of one pixel": {"value": EXAMPLE}},
        },
        "application/octet-stream": BINARY,
    },
}
ANSWER = {
    "content": {"application/octet-stream": BINARY},
    "headers": {
        "X-Request-ID": REQUEST_ID,
        "Server-Timing": SERVER_TIMING,
        LENGTH_HEADER: LENGTH,
    },
}
