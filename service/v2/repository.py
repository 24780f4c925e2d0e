"""The Open Inference Protocol's model repository, for who has an admin key; off where none is set.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
as Triton's clients speak it, and the index by GET as well. One version of one model is served, so
loading one means to replace the other.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse

from batching import Draining
from model_store.manifest import Version
from service import errors
from service.http import problems
from service.http.middleware import FastRoute
from service.inference.pipeline import service_of
from service.inference.service import Versions
from service.upload.body import read_bytes
from service.v2 import schemas

MAX_BODY = 64 * 1024
PASSED_OVER = {"unload_dependents"}
"""Of Triton's clients: nothing depends on a model here."""

Shape = TypeVar("Shape", schemas.RepositoryRequest, schemas.RepositoryIndexRequest)
_version = TypeAdapter[str](Version)

router = APIRouter(prefix="/v2/repository", tags=["model repository"], route_class=FastRoute)

MODEL = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
ANSWER: dict[str, Any] = {"headers": {"X-Request-ID": problems.REQUEST_ID}}
REFUSALS = (
    errors.UnknownHost,
    errors.NotAdmin,
    errors.RepositoryOff,
    errors.BadRepositoryCall,
    errors.BodyTooLarge,
    errors.UploadTimeout,
    errors.UploadMemoryFull,
)
CHANGE_REFUSALS = (
    *REFUSALS,
    errors.CrossSite,
    errors.UnknownModel,
    errors.ChangeUnderWay,
    errors.NotReady,
    Draining,
)


def _body(shape: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{shape}"}
    return {"content": {"application/json": {"schema": schema}}}


@router.get(
    "/index",
    summary="What is in the repository",
    response_model=list[schemas.RepositoryVersion],
    responses={200: ANSWER, **problems.documented(REFUSALS, "/v2")},
)
async def index_all(request: Request) -> Response:
    """Every version of the model that is served: which one does, and why others do not."""
    _check_key(request)
    return JSONResponse(await service_of(request).repository.index())


@router.post(
    "/index",
    summary="What is in the repository",
    response_model=list[schemas.RepositoryVersion],
    openapi_extra={"requestBody": _body("RepositoryIndexRequest")},
    responses={200: ANSWER, **problems.documented((*REFUSALS, errors.CrossSite), "/v2")},
)
async def index(request: Request) -> Response:
    """The same, as the protocol asks for it: `{"ready": true}` for what is served only."""
    _check_key(request)
    wish = await _read(request, schemas.RepositoryIndexRequest)
    versions = await service_of(request).repository.index()
    if wish.ready:
        versions = [version for version in versions if version["state"] == "READY"]
    return JSONResponse(versions)


@router.post(
    "/models/{model}/load",
    summary="Let another version serve",
    response_model=schemas.RepositoryAnswer,
    openapi_extra={"parameters": MODEL, "requestBody": _body("RepositoryRequest")},
    responses={
        200: ANSWER,
        **problems.documented((*CHANGE_REFUSALS, errors.LoadFailed), "/v2"),
    },
)
async def load(request: Request) -> Response:
    """Verify, load, warm up and try a version beside the one that serves; then let it take its
    place between two batches. Not one request fails, and each answer names the version that
    computed it. Without `parameters.version`: the one that a start would take.

    A version that cannot be served changes nothing. A restart knows nothing of loads.
    """
    _check_key(request)
    call = await _read(request, schemas.RepositoryRequest)
    loaded = await _changing(request).load(request.path_params["model"], _wanted(call))
    return JSONResponse(loaded.model_dump())


@router.post(
    "/models/{model}/unload",
    summary="Stop serving the model",
    response_model=schemas.RepositoryAnswer,
    openapi_extra={"parameters": MODEL, "requestBody": _body("RepositoryRequest")},
    responses={200: ANSWER, **problems.documented(CHANGE_REFUSALS, "/v2")},
)
async def unload(request: Request) -> Response:
    """Whoever was accepted is answered, then its memory is freed. Until the next load the process
    is live and not ready, and refuses images with `not_ready`."""
    _check_key(request)
    await _read(request, schemas.RepositoryRequest)
    unloaded = await _changing(request).unload(request.path_params["model"])
    return JSONResponse(unloaded.model_dump())


def _check_key(request: Request) -> None:
    """Raises RepositoryOff, NotAdmin."""
    keys = service_of(request).admin_keys
    if not keys.required:
        raise errors.RepositoryOff
    keys.check(request.headers)


def _changing(request: Request) -> Versions:
    """The repository, for a change. Raises Draining if the server is shutting down."""
    service = service_of(request)
    if service.draining:
        raise Draining("shutting down", retry_after=1)
    return service.repository


async def _read(request: Request, shape: type[Shape]) -> Shape:
    """The body, which may be empty.

    Raises BadRepositoryCall, BodyTooLarge, UploadTimeout, UploadMemoryFull.
    """
    with service_of(request).uploads.lease(MAX_BODY) as lease:
        body = await read_bytes(request, lease)
    return _validated(body or b"{}", shape)


def _validated(body: bytes, shape: type[Shape]) -> Shape:
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise errors.BadRepositoryCall(schemas.fault(error)) from None


def _wanted(call: schemas.RepositoryRequest) -> str | None:
    """The version that a load asks for. Raises BadRepositoryCall for what is not understood."""
    if strange := call.parameters.keys() - {"version"} - PASSED_OVER:
        raise errors.BadRepositoryCall(
            f"There is no parameter {min(strange)[:64]!r}, but 'version'. A version is served as "
            "its manifest in the store says; `python -m model_store import` adds one."
        )
    version = call.parameters.get("version")
    if version is None:
        return None
    try:
        return _version.validate_python(str(version))
    except ValidationError:
        raise errors.BadRepositoryCall(
            f"The parameter 'version' is {str(version)[:64]!r} and not a number from 1 on."
        ) from None
