"""OpenAPI: what is described is what is answered, on every path that takes images."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from service.api import predict
from service.app import create_app
from service.http.problems import PROBLEMS
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.conftest import connected, png

HORSE = png(7)
NOSNIFF = "x-content-type-options"
INFER = "/v2/models/{model}/infer"
DATA = [base64.b64encode(HORSE).decode()]
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": DATA}
BINARY = {"inputs": [IMAGE], "parameters": {"binary_data_output": True}}

REQUESTS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "an image": ("post", "/predict", 200, {"files": {"img": HORSE}}),
    "images": ("post", "/predict/batch", 200, {"files": [("img", HORSE), ("img", b"x")]}),
    "no images": ("post", "/predict/batch", 422, {}),
    "too many": ("post", "/predict/batch", 413, {"files": [("img", b"x")] * 65}),
    "bad timeout": ("post", "/predict/batch", 400, {"headers": {"x-request-timeout": "x"}}),
    "v2": ("get", "/v2", 200, {}),
    "v2 live": ("get", "/v2/health/live", 200, {}),
    "v2 ready": ("get", "/v2/health/ready", 200, {}),
    "model": ("get", "/v2/models/{model}", 200, {}),
    "model ready": ("get", "/v2/models/{model}/ready", 200, {}),
    "version": ("get", "/v2/models/{model}/versions/{version}", 404, {}),
    "infer": ("post", INFER, 200, {"json": {"inputs": [IMAGE]}}),
    "infer in binary": ("post", INFER, 200, {"json": BINARY}),
    "infer with an id": ("post", INFER, 200, {"json": BINARY | {"id": "42"}}),
    "infer nothing": ("post", INFER, 400, {}),
    "infer emptiness": ("post", INFER, 422, {"json": {"inputs": [IMAGE | {"data": [""]}]}}),
    "infer compressed": ("post", INFER, 415, {"headers": {"content-encoding": "br"}}),
    "infer too much": ("post", INFER, 413, {"json": {"inputs": [IMAGE | {"shape": [65]}]}}),
    "infer too late": (
        "post",
        INFER,
        503,
        {"json": {"inputs": [IMAGE]}, "headers": {"x-request-timeout": "1e-7"}},
    ),
}


@pytest.fixture(scope="module")
def description() -> Any:
    return create_app(Settings(), FakeEngine().load).openapi()


@pytest.mark.parametrize(("method", "path", "status", "request_"), REQUESTS.values(), ids=REQUESTS)
async def test_answers_are_as_described(
    client: httpx.AsyncClient,
    description: Any,
    method: str,
    path: str,
    status: int,
    request_: dict[str, Any],
) -> None:
    """Status, type of body, headers, and the members of a JSON body."""
    response = await client.request(method, path.format(model="fake", version="8"), **request_)
    if status == 503 and response.status_code == 504:
        status = 504  # late, and told so after it had been tried
    assert response.status_code == status, response.text
    described = description["paths"][path][method]["responses"][str(status)]
    kind = response.headers["content-type"]
    assert kind in described["content"]
    if method == "post":
        ours = set(response.headers) - {"content-length", "content-type", NOSNIFF}
        assert ours <= {name.lower() for name in described["headers"]}
    if kind != "application/octet-stream":
        shapes = description["components"]["schemas"]
        fits(response.json(), described["content"][kind]["schema"], shapes)


def fits(value: Any, schema: Any, shapes: Any) -> None:
    """No member too few or too many, all the way down."""
    if name := schema.get("$ref"):
        schema = shapes[name.rpartition("/")[2]]
    if choices := schema.get("anyOf"):
        taken = [
            choice
            for choice in choices
            if "$ref" not in choice
            or set(shapes[choice["$ref"].rpartition("/")[2]]["required"]) <= set(value)
        ]
        assert taken
        schema = taken[0]
        if "$ref" in schema:
            fits(value, schema, shapes)
            return
    if schema.get("type") == "array":
        assert isinstance(value, list)
        for item in value:
            fits(item, schema["items"], shapes)
    if "properties" in schema:
        assert set(schema["required"]) <= set(value) <= set(schema["properties"])
        for member in value:
            fits(value[member], schema["properties"][member], shapes)


def codes(operation: Any) -> set[str]:
    return {
        code
        for response in operation["responses"].values()
        for content in response["content"].values()
        for code in content.get("examples", {})
    }


def test_every_problem_is_described(description: Any) -> None:
    """Each that can befall an image, wherever images are sent."""
    paths = description["paths"]
    refusals = {PROBLEMS[kind].code for kind in (*predict.UPLOAD_ERRORS, *predict.IMAGE_ERRORS)} | {
        "internal_error"
    }
    assert codes(paths["/predict"]["post"]) == refusals
    more = {"bad_inference", "unknown_model", "unsupported_encoding", "too_many_images"}
    for path in INFER, INFER.replace("/infer", "/versions/{version}/infer"):
        assert codes(paths[path]["post"]) == refusals | more
        assert {p["name"] for p in paths[path]["post"]["parameters"]} >= {
            "model",
            "X-Request-Timeout",
            "Inference-Header-Content-Length",
        }


def test_every_name_is_described_once(description: Any) -> None:
    """Operations have names of their own, as generators of clients want."""
    paths = description["paths"]
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(names) == len(set(names)) > 10


async def test_the_retry_is_described(engine: FakeEngine, description: Any) -> None:
    """The one member of an image's problem that not all have."""
    async with connected(Settings(max_queue_size=1), engine) as client:
        response = await client.post("/predict/batch", files=[("img", HORSE)] * 2)
    assert response.json()["predictions"][1]["retry_after"] == 1
    described = description["paths"]["/predict/batch"]["post"]["responses"]["200"]["content"]
    schema = described["application/json"]["schema"]
    fits(response.json(), schema, description["components"]["schemas"])
