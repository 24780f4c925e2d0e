"""Describes the JSON of responses for OpenAPI.

`predict` and `probes` build the responses without these classes.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from service.http.problems import MAX_RETRY_AFTER


class Model(BaseModel):
    """The model that produced the result."""

    name: str = Field(examples=["cifar_resnet20_v1"])
    version: str = Field(examples=["1"])


class Prediction(BaseModel):
    """The most probable class of the image."""

    class_: str = Field(alias="class", examples=["horse"])
    probability: float = Field(
        ge=0, le=1, examples=[0.9971], description="Softmax probability of `class`"
    )
    message: str = Field(
        examples=["The input picture is classified as [horse], with probability 0.997."]
    )
    probabilities: dict[str, float] = Field(
        description="Softmax probability of every class, in the order of the model's outputs",
        examples=[
            {
                "airplane": 0.0,
                "automobile": 0.0,
                "bird": 0.0,
                "cat": 0.0002,
                "deer": 0.0005,
                "dog": 0.0022,
                "frog": 0.0,
                "horse": 0.9971,
                "ship": 0.0,
                "truck": 0.0,
            }
        ],
    )
    model: Model


class Ready(BaseModel):
    """The loaded model, its device and its expected latency."""

    status: str = Field(examples=["ready"])
    model: Model
    device: str = Field(examples=["cpu"])
    device_reason: str = Field(
        description="The reason why this device is used", examples=["as requested"]
    )
    backend: str = Field(description="The library that runs the model", examples=["mxnet"])
    backend_reason: str = Field(
        description="The reason why this library is used",
        examples=["onnxruntime can use the same device, and mxnet is preferred"],
    )
    precision: str = Field(examples=["int8"])
    precision_reason: str = Field(
        description="The reason why this precision is used",
        examples=["the measured accuracy is 92.40% in int8, 92.46% in fp32"],
    )
    latency: dict[str, float] = Field(
        description="Predicted duration of a batch in seconds, for each batch size",
        examples=[{"1": 0.0011, "16": 0.0081}],
    )


class Live(BaseModel):
    """The response of the liveness probe if the process works."""

    status: str = Field(examples=["live"])


class ProblemDetails(BaseModel):
    """An error in the format of RFC 9457 (Problem Details for HTTP APIs)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What happened, and what to do")
    code: str = Field(description="Identifies the kind of error for programs")
    request_id: str


class ImageProblem(ProblemDetails):
    """The error of one image in a request with several images."""

    retry_after: int = Field(
        default=0,
        ge=1,
        le=MAX_RETRY_AFTER,
        description="Seconds after which to retry. Only present if a retry may succeed",
    )


class Predictions(BaseModel):
    """One result for each file, in the order of the files."""

    predictions: list[Prediction | ImageProblem]
