"""The request and response bodies of the Open Inference Protocol v2 over REST, as pydantic models.

They follow https://github.com/kserve/open-inference-protocol. Requests are validated with them, and
OpenAPI describes both. What the model accepts as an input is checked in `inputs`. Unknown members
are ignored, as the protocol demands for its extensions.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.http.problems import REQUEST_ID, SERVER_TIMING

Parameters = dict[str, Any]
MAX_DIMENSIONS = 8
"""Maximum number of dimensions of an input tensor."""


class _RequestModel(BaseModel):
    """Converts nothing: "1" is not a number. Lists with checked items have a maximum length."""

    model_config = ConfigDict(strict=True, frozen=True)


class RequestInput(_RequestModel):
    """An input tensor. If `binary_data_size` is set, its elements follow the JSON."""

    name: str = Field(max_length=64, examples=["image", "pixels"])
    shape: list[int] = Field(
        min_length=1, max_length=MAX_DIMENSIONS, examples=[[1], [1, 32, 32, 3]]
    )
    datatype: str = Field(max_length=16, examples=["BYTES", "UINT8", "FP32"])
    parameters: Parameters = Field(
        default={}, description="`binary_data_size`: bytes of the tensor after the JSON"
    )
    data: list[Any] | None = Field(
        default=None,
        description="The elements, nested or flat, in row-major order. BYTES are base64 strings",
    )


class RequestOutput(_RequestModel):
    """An output that the response is to contain, and its form."""

    name: str = Field(max_length=64, examples=["class", "probability", "probabilities"])
    parameters: Parameters = Field(
        default={},
        description="`binary_data`: whether to send the output after the JSON; `classification`, "
        "for `probabilities` only: send this number of most probable classes, as BYTES of the form "
        "probability:index:class",
    )


class InferenceRequest(_RequestModel):
    """One input with n images, and the requested outputs: all of them if none is named."""

    id: str | None = Field(
        default=None,
        max_length=1024,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="Returned in the response",
    )
    parameters: Parameters = Field(
        default={},
        description="`timeout`: maximum time until the response, in microseconds; "
        "`binary_data_output`: whether to send all outputs after the JSON",
    )
    inputs: list[RequestInput] = Field(min_length=1, max_length=4)
    outputs: list[RequestOutput] | None = Field(default=None, max_length=16)


class ResponseOutput(BaseModel):
    """An output tensor, flat and in row-major order."""

    name: str = Field(examples=["probability"])
    datatype: str = Field(examples=["FP32"])
    shape: list[int] = Field(examples=[[1]])
    parameters: Parameters = Field(
        default={}, description="`binary_data_size`: bytes of the tensor after the JSON"
    )
    data: list[str | float] = Field(default=[], examples=[[0.9971]])


class InferenceResponse(BaseModel):
    model_name: str = Field(examples=["cifar_resnet20_v1"])
    model_version: str = Field(examples=["1"])
    id: str = Field(default="", description="The `id` of the request, if it has one")
    outputs: list[ResponseOutput]


class RepositoryIndexRequest(_RequestModel):
    ready: bool = Field(default=False, description="Whether to list only versions that are READY")


class RepositoryRequest(_RequestModel):
    parameters: Parameters = Field(
        default={},
        description="For a load, `version`: the version to serve",
        examples=[{"version": "2"}],
    )


class RepositoryVersion(BaseModel):
    """A version of the model."""

    name: str = Field(examples=["cifar_resnet20_v1"])
    version: str = Field(examples=["2"])
    state: str = Field(examples=["READY"], description="READY, LOADING or UNAVAILABLE")
    reason: str = Field(examples=[""], description="Why the version is not READY")


class RepositoryAnswer(BaseModel):
    """The version that is served after a load, or was served before an unload."""

    name: str = Field(examples=["cifar_resnet20_v1"])
    version: str = Field(examples=["2"])


class InferenceError(BaseModel):
    error: str = Field(description="What happened, and what to do")


class ServerMetadata(BaseModel):
    name: str = Field(examples=["shoal"])
    version: str = Field(examples=["0.2.0"])
    extensions: list[str] = Field(examples=[["binary_tensor_data", "classification"]])


class TensorMetadata(BaseModel):
    name: str = Field(examples=["image"])
    datatype: str = Field(examples=["BYTES"])
    shape: list[int] = Field(description="-1 stands for any number of images", examples=[[-1]])


class ModelMetadata(BaseModel):
    """The inputs and outputs of the model. A request has exactly one of the `inputs`."""

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


# Descriptions for OpenAPI of what the routes read and write without pydantic.

LENGTH_HEADER = "Inference-Header-Content-Length"
LENGTH = {
    "description": "Length of the JSON in bytes, if binary data follows it",
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
