"""Defines the bodies of the Open Inference Protocol v2 over REST as pydantic models.

The classes follow https://github.com/kserve/open-inference-protocol. The classes of requests
validate the bodies. The classes of responses only describe the bodies for OpenAPI. The module
`inputs` checks whether the served model has the input that a request names. Unknown members of a
request are ignored, as the protocol requires.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.http.problems import REQUEST_ID, SERVER_TIMING

Parameters = dict[str, Any]
"""Optional parameters of a request, a tensor or a response, by name."""
MAX_DIMENSIONS = 8
"""Maximum number of dimensions of an input tensor."""


class _RequestModel(BaseModel):
    """Base class of the request bodies.

    Values are not converted: the string "1" is rejected where a number is required. If pydantic
    checks the items of a list, the list has a maximum length, which limits the time of the check.
    """

    model_config = ConfigDict(strict=True, frozen=True)


class RequestInput(_RequestModel):
    """An input tensor. If `binary_data_size` is set, the elements of the tensor follow the JSON."""

    name: str = Field(max_length=64, examples=["image", "pixels"])
    shape: list[int] = Field(
        min_length=1, max_length=MAX_DIMENSIONS, examples=[[1], [1, 32, 32, 3]]
    )
    datatype: str = Field(max_length=16, examples=["BYTES", "UINT8", "FP32"])
    parameters: Parameters = Field(
        default={}, description="`binary_data_size`: number of bytes of the tensor after the JSON"
    )
    data: list[Any] | None = Field(
        default=None,
        description="The elements, as a nested or flat list in row-major order. Elements of BYTES "
        "are base64 strings",
    )


class RequestOutput(_RequestModel):
    """An output that the response should contain, and its format."""

    name: str = Field(max_length=64, examples=["class", "probability", "probabilities"])
    parameters: Parameters = Field(
        default={},
        description="`binary_data`: whether to send the output as binary data after the JSON. "
        "`classification` (only for the output `probabilities`): k, to send the k most probable "
        "classes instead of all probabilities. Each class is a string of the form "
        "`probability:index:class`",
    )


class InferenceRequest(_RequestModel):
    """A request with one input of n images. Without `outputs`, the response has all outputs."""

    id: str | None = Field(
        default=None,
        max_length=1024,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="Identifies the request. The response contains the same `id`",
    )
    parameters: Parameters = Field(
        default={},
        description="`timeout`: maximum time until the response, in microseconds. "
        "`binary_data_output`: whether to send all outputs as binary data after the JSON",
    )
    inputs: list[RequestInput] = Field(min_length=1, max_length=4)
    outputs: list[RequestOutput] | None = Field(default=None, max_length=16)


class ResponseOutput(BaseModel):
    """An output tensor. The elements are a flat list in row-major order."""

    name: str = Field(examples=["probability"])
    datatype: str = Field(examples=["FP32"])
    shape: list[int] = Field(examples=[[1]])
    parameters: Parameters = Field(
        default={}, description="`binary_data_size`: number of bytes of the tensor after the JSON"
    )
    data: list[str | float] = Field(default=[], examples=[[0.9971]])


class InferenceResponse(BaseModel):
    """The outputs for all images of a request, and the model that produced them."""

    model_name: str = Field(examples=["cifar_resnet20_v1"])
    model_version: str = Field(examples=["1"])
    id: str = Field(default="", description="The `id` of the request, if the request has an `id`")
    outputs: list[ResponseOutput]


class RepositoryIndexRequest(_RequestModel):
    """A request for the list of versions."""

    ready: bool = Field(default=False, description="Whether to list only versions that are READY")


class RepositoryRequest(_RequestModel):
    """A request to load a version, or to unload the model."""

    parameters: Parameters = Field(
        default={},
        description="`version` (only for a load): the version to load",
        examples=[{"version": "2"}],
    )


class RepositoryVersion(BaseModel):
    """A version of the model, and its state."""

    name: str = Field(examples=["cifar_resnet20_v1"])
    version: str = Field(examples=["2"])
    state: str = Field(examples=["READY"], description="READY, LOADING or UNAVAILABLE")
    reason: str = Field(examples=[""], description="The reason why the version is not READY")


class RepositoryAnswer(BaseModel):
    """The version that was loaded or unloaded."""

    name: str = Field(examples=["cifar_resnet20_v1"])
    version: str = Field(examples=["2"])


class InferenceError(BaseModel):
    """An error in the format of the protocol."""

    error: str = Field(description="What happened, and what to do")


class ServerMetadata(BaseModel):
    """The server, and the supported extensions of the protocol."""

    name: str = Field(examples=["shoal"])
    version: str = Field(examples=["0.2.0"])
    extensions: list[str] = Field(examples=[["binary_tensor_data", "classification"]])


class TensorMetadata(BaseModel):
    """An input or output of the model."""

    name: str = Field(examples=["image"])
    datatype: str = Field(examples=["BYTES"])
    shape: list[int] = Field(
        description="The dimensions. -1 is the number of images, which may vary", examples=[[-1]]
    )


class ModelMetadata(BaseModel):
    """The inputs and outputs of the model. A request has exactly one of the `inputs`."""

    name: str = Field(examples=["cifar_resnet20_v1"])
    versions: list[str] = Field(examples=[["1"]])
    platform: str = Field(examples=["mxnet_gluon"])
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerLive(BaseModel):
    """The result of the liveness probe."""

    live: bool = Field(examples=[True])


class ServerReady(BaseModel):
    """The result of the readiness probe."""

    ready: bool = Field(examples=[True])


class ModelReady(BaseModel):
    """The result of the readiness probe of a model."""

    name: str = Field(examples=["cifar_resnet20_v1"])
    ready: bool = Field(examples=[True])


# The constants below describe headers and bodies for OpenAPI. The routes read and write these
# headers and bodies without FastAPI.

LENGTH_HEADER = "Inference-Header-Content-Length"
LENGTH = {
    "description": "Length of the JSON in bytes, if binary data follows the JSON",
    "schema": {"type": "integer", "minimum": 1},
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGOw6TkBAAKYAZFkYbNGAAAAAElFTkSuQmCC"
EXAMPLE = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [PNG]}]}
REQUEST = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/InferenceRequest"},
            "examples": {"A PNG of one pixel": {"value": EXAMPLE}},
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
