"""Serves the model repository API, which lists, loads and unloads versions of the model.

The API follows an extension of the Open Inference Protocol that Triton's clients support:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
Clients may also read the index with GET, which is an addition to the extension. One version is
loaded at a time, so a load replaces the current version. Every request needs an admin key. If no
admin key is set, the API is disabled.
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
"""Maximum number of bytes of a body."""
IGNORED_PARAMETERS = {"unload_dependents"}
"""Parameters that Triton's clients send and that have no effect: no model depends on another
model."""

RequestModel = TypeVar("RequestModel", schemas.RepositoryRequest, schemas.RepositoryIndexRequest)
_version_type = TypeAdapter[str](Version)

router = APIRouter(prefix="/v2/repository", tags=["model repository"], route_class=FastRoute)

MODEL = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
ANSWER: dict[str, Any] = {"headers": {"X-Request-ID": problems.REQUEST_ID}}
ERRORS = (
    errors.UnknownHost,
    errors.NotAdmin,
    errors.RepositoryOff,
    errors.BadRepositoryCall,
    errors.BodyTooLarge,
    errors.UploadTimeout,
    errors.UploadMemoryFull,
)
CHANGE_ERRORS = (
    *ERRORS,
    errors.CrossSite,
    errors.UnknownModel,
    errors.ChangeUnderWay,
    errors.NotReady,
    Draining,
)


def _body(schema_name: str) -> dict[str, Any]:
    """Return the description of a request body for OpenAPI."""
    schema = {"$ref": f"#/components/schemas/{schema_name}"}
    return {"content": {"application/json": {"schema": schema}}}


@router.get(
    "/index",
    summary="List versions",
    response_model=list[schemas.RepositoryVersion],
    responses={200: ANSWER, **problems.documented(ERRORS, "/v2")},
)
async def index_all(request: Request) -> Response:
    """List all versions of the model, with the state of each version.

    The loaded version is READY. For other versions, `reason` explains why they are not READY.
    """
    _check_key(request)
    return JSONResponse(await service_of(request).repository.index())


@router.post(
    "/index",
    summary="List versions",
    response_model=list[schemas.RepositoryVersion],
    openapi_extra={"requestBody": _body("RepositoryIndexRequest")},
    responses={200: ANSWER, **problems.documented((*ERRORS, errors.CrossSite), "/v2")},
)
async def index(request: Request) -> Response:
    """List all versions of the model, or only the loaded version with `{"ready": true}`.

    Clients of the protocol use POST. GET is an addition of this server.
    """
    _check_key(request)
    body = await _read(request, schemas.RepositoryIndexRequest)
    versions = await service_of(request).repository.index()
    if body.ready:
        versions = [version for version in versions if version["state"] == "READY"]
    return JSONResponse(versions)


@router.post(
    "/models/{model}/load",
    summary="Load a version",
    response_model=schemas.RepositoryAnswer,
    openapi_extra={"parameters": MODEL, "requestBody": _body("RepositoryRequest")},
    responses={
        200: ANSWER,
        **problems.documented((*CHANGE_ERRORS, errors.LoadFailed), "/v2"),
    },
)
async def load(request: Request) -> Response:
    """Load a version, which replaces the current version.

    The server verifies, loads, warms up and tests the new version. Meanwhile, the current version
    classifies images. The server then switches versions between two batches, so no request fails.
    Each response names the version that classified its images. If the load fails, the current
    version stays.

    Without `parameters.version`, the server loads the version that it would load at startup. The
    change lasts until the next restart of the server.
    """
    _check_key(request)
    body = await _read(request, schemas.RepositoryRequest)
    repository = _running_repository(request)
    loaded = await repository.load(request.path_params["model"], _version(body))
    return JSONResponse(loaded.model_dump())


@router.post(
    "/models/{model}/unload",
    summary="Unload the model",
    response_model=schemas.RepositoryAnswer,
    openapi_extra={"parameters": MODEL, "requestBody": _body("RepositoryRequest")},
    responses={200: ANSWER, **problems.documented(CHANGE_ERRORS, "/v2")},
)
async def unload(request: Request) -> Response:
    """Unload the model and free its memory, after all accepted requests have finished.

    Until the next load, the server is live but not ready, and rejects images with the code
    `not_ready`.
    """
    _check_key(request)
    await _read(request, schemas.RepositoryRequest)
    unloaded = await _running_repository(request).unload(request.path_params["model"])
    return JSONResponse(unloaded.model_dump())


def _check_key(request: Request) -> None:
    """Check the admin key of a request.

    Raises RepositoryOff if no admin key is set, and NotAdmin if the request has no valid key.
    """
    keys = service_of(request).admin_keys
    if not keys.required:
        raise errors.RepositoryOff
    keys.check(request.headers)


def _running_repository(request: Request) -> Versions:
    """Return the repository for a change of the model. Raises Draining during a shutdown."""
    service = service_of(request)
    if service.draining:
        raise Draining
    return service.repository


async def _read(request: Request, model: type[RequestModel]) -> RequestModel:
    """Read the body and parse it as `model`. An empty body counts as `{}`.

    Raises BadRepositoryCall, BodyTooLarge, UploadTimeout, UploadMemoryFull.
    """
    with service_of(request).uploads.lease(MAX_BODY) as lease:
        body = await read_bytes(request, lease)
    return _validated(body or b"{}", model)


def _validated(body: bytes, model: type[RequestModel]) -> RequestModel:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise errors.BadRepositoryCall(errors.first_error(error)) from None


def _version(body: schemas.RepositoryRequest) -> str | None:
    """Return the version to load, or None if the request names no version.

    Raises BadRepositoryCall if the version or another parameter is invalid.
    """
    if unknown := body.parameters.keys() - {"version"} - IGNORED_PARAMETERS:
        raise errors.BadRepositoryCall(
            f"The parameter {min(unknown)[:64]!r} is not supported. Send only 'version'. Files and "
            "configurations cannot be sent: add versions to the model store with "
            "`python -m model_store import`."
        )
    version = body.parameters.get("version")
    if version is None:
        return None
    try:
        return _version_type.validate_python(str(version))
    except ValidationError:
        raise errors.BadRepositoryCall(
            f"The parameter 'version' is {str(version)[:64]!r}. Send a whole number from 1."
        ) from None
