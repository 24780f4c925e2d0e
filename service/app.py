"""Builds the application: `create_app` connects all parts of the service.

Importing this module builds nothing and reads no settings.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, cast

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from pydantic import SecretStr
from pydantic.json_schema import models_json_schema
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware

import model_store.engine
from model_store.engine import LaneEngine
from service import errors
from service.api import documentation, pages, predict, probes, schemas
from service.decoding.limits import Limits, limits
from service.decoding.pool import Decoders
from service.http import problems
from service.http.api_keys import ApiKeys
from service.http.middleware import FastPath, RequestMiddleware
from service.http.origins import PROBE_PATHS, Guard
from service.inference.model_host import LoadEngine, ModelHost
from service.inference.repository import Repository
from service.inference.repository import folder as folder_of
from service.inference.service import Decoding, Engine, Service, Versions
from service.rate_limit import RateLimiter
from service.server.server import Listener, SidePort
from service.settings import PREFIX, BadSettings, Settings, split
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import from_environment
from service.upload.body import UploadMemory
from service.v2 import repository as v2_repository
from service.v2 import routes as v2_routes
from service.v2 import schemas as v2_schemas
from service.workers import engine_process
from service.workers.engine_client import DecoderClient, EngineClient
from service.workers.engine_server import EngineServer

DESCRIPTION = """\
Image classification with dynamic micro-batching. Send one image to `POST /predict` to get its class
and softmax probability, or several images to `POST /predict/batch`. The Open Inference Protocol v2
is served below `/v2`, and its errors have the form `{"error": "..."}`. The errors of all other
endpoints are `application/problem+json` (RFC 9457).
"""
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
NOTE_INTERVAL = 1.0
"""Interval in seconds at which a front end updates the metrics that are summed over all
processes."""
LOAD_ENGINE = "service.app:load_engine"
"""Name of the default function that loads the engine, as `module:function`."""


def load_engine(settings: Settings) -> AbstractAsyncContextManager[LaneEngine]:
    """Return a context manager that loads the model in the settings, and closes the model on exit.

    Entering the context manager raises BadModel if the model cannot be loaded.
    """
    return model_store.engine.load_engine(
        folder_of(settings),
        settings.device,
        settings.engine_threads,
        settings.max_batch_size,
        settings.precision,
        settings.engine_lanes,
        settings.backend,
    )


def imported(path: str) -> LoadEngine:
    """Import the function that `path` names as `module:function`.

    The function must have the signature of `load_engine`.
    """
    module, _, name = path.partition(":")
    return cast(LoadEngine, getattr(importlib.import_module(module), name))


def create_app(
    settings: Settings, load_engine: LoadEngine = load_engine, folder: str | None = None
) -> FastAPI:
    """Build the ASGI application.

    The application begins to load the model when it starts. At a shutdown, the application finishes
    all accepted requests before it ends.

    Args:
        settings: The settings of this process.
        load_engine: Function that loads the engine. The function is not called if `folder` is
            given.
        folder: Path of the folder that all processes of the service share, if the engine is in
            another process. None: the engine is in this process.

    Raises:
        BadSettings: The API keys are invalid, a setting needs a package that is missing, or two
            settings contradict each other.
    """
    service = _service(settings, load_engine, folder)
    app = _fastapi(settings, service, front_end=folder is not None)
    app.state.service = service
    app.state.listeners = _listeners(app, service)
    if settings.docs:
        documentation.replace_routes(app)
    _add_routes(app, service)
    for kind in problems.HANDLED:
        app.add_exception_handler(kind, problems.handle)
    _add_middleware(app, service)
    app.openapi = _described(app, service)  # type: ignore[method-assign]  # as FastAPI documents
    return app


def create_engine_server(
    settings: Settings, load_engine: LoadEngine, folder: str, on_failure: Callable[[], None]
) -> EngineServer:
    """Build the server of the engine process.

    The engine process runs the engine and the decoders. Front ends are the processes that accept
    HTTP requests. The front ends use the engine and the decoders through a socket in `folder`.

    Args:
        settings: The settings of the service.
        load_engine: Function that loads the engine.
        folder: Path of the folder that all processes of the service share.
        on_failure: Called once if the model cannot be loaded, or if the engine does not finish a
            batch in time and counts as dead.

    Raises:
        BadSettings: The decoders need more memory than the settings allow.
    """
    metrics = Metrics(folder)
    host = ModelHost(
        settings,
        load_engine,
        metrics,
        on_failure,
        on_change=lambda: server.announce(),
        on_failing=engine_process.restart,
    )
    decoders = Decoders(_decode_limits(settings), metrics.count_decoder_kill)
    server = EngineServer(host, Repository(settings, host, metrics.count_load), decoders)
    return server


def _service(settings: Settings, load_engine: LoadEngine, folder: str | None) -> Service:
    tracing = from_environment(os.environ)
    metrics = Metrics(folder)
    engine: Engine
    repository: Versions
    decoders: Decoding
    if folder is None:
        # If the model cannot be loaded or the engine is dead, the process shuts down as on SIGTERM.
        stop = partial(signal.raise_signal, signal.SIGTERM)
        engine = host = ModelHost(settings, load_engine, metrics, stop, tracing=tracing)
        repository = Repository(settings, host, metrics.count_load)
        decoders = Decoders(_decode_limits(settings), metrics.count_decoder_kill)
    else:
        engine = repository = EngineClient(folder)
        decoders = DecoderClient(folder, _decode_limits(settings))
    return Service(
        settings=settings,
        engine=engine,
        decoders=decoders,
        repository=repository,
        uploads=UploadMemory(
            settings.max_upload_memory, settings.max_upload_bytes, settings.upload_timeout
        ),
        keys=ApiKeys(_secret(settings.api_keys), settings.api_keys_file),
        admin_keys=ApiKeys(
            _secret(settings.admin_keys), settings.admin_keys_file, "ADMIN_KEYS", errors.NotAdmin
        ),
        rate_limiter=_rate_limiter(settings),
        metrics=metrics,
        tracing=tracing,
    )


def _fastapi(settings: Settings, service: Service, front_end: bool) -> FastAPI:
    tracing = service.tracing

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running(), _updating_metrics(service, front_end):
            yield
        if tracing is not None:
            await tracing.close()

    without_docs = partial(FastAPI, docs_url=None, openapi_url=None)
    build: Callable[..., FastAPI] = FastAPIOffline if settings.docs else without_docs
    return build(
        title="Shoal",
        version="0.2.0",
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={
            "tracing": tracing is not None,
            "tracer_provider": tracing and tracing.provider,
            "operation_spans": False,
            "metrics": False,
            "logs": False,
            "exclude": lambda scope: scope["path"] in PROBE_PATHS,
        },
    )


def _add_routes(app: FastAPI, service: Service) -> None:
    """Add the API's routes before FastAPI's own routes, and the page's routes after them.

    The first route that matches a request handles it.
    """
    settings = service.settings
    metrics = APIRouter() if settings.metrics_port is not None else probes.metrics_router(service)
    app.router.routes[:0] = [
        *predict.router.routes,
        *probes.router.routes,
        *metrics.routes,
        *v2_routes.router.routes,
        *v2_repository.router.routes,
    ]
    if settings.page:
        app.include_router(pages.router(settings.docs))


def _add_middleware(app: FastAPI, service: Service) -> None:
    """Add the middleware from the innermost layer to the outermost layer."""
    settings = service.settings
    if service.tracing is None:  # FastPath would skip FastAPI's layers, which trace requests
        app.add_middleware(FastPath, routes=app.router.routes)
    if origins := split(settings.cors_origins):
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[
                "X-Request-ID",
                "Server-Timing",
                "Retry-After",
                v2_schemas.LENGTH_HEADER,
            ],
        )
    app.add_middleware(
        RequestMiddleware,
        metrics=service.metrics,
        state=service,
        guard=Guard(settings),
        trusted_proxies=settings.trusted_proxies,
    )


def _rate_limiter(settings: Settings) -> RateLimiter | None:
    if settings.rate_limit is None:
        return None
    burst = settings.rate_burst or max(1, math.floor(settings.rate_limit))
    return RateLimiter(settings.rate_limit, burst)


@asynccontextmanager
async def _updating_metrics(service: Service, front_end: bool) -> AsyncIterator[None]:
    """Context manager that updates the summed metrics of a front end, and does nothing elsewhere.

    Summed metrics are sums over all processes of the service. If the service has only one process,
    `/metrics` updates these metrics before it returns them.
    """

    async def update() -> None:
        while front_end:
            service.metrics.record_state(service.uploads.held, service.decoders.waiting)
            await asyncio.sleep(NOTE_INTERVAL)

    updating = asyncio.create_task(update())
    try:
        yield
    finally:
        updating.cancel()


def _decode_limits(settings: Settings) -> Limits:
    """Return the limits of the decoders. Raises BadSettings if the memory is too small."""
    try:
        return limits(
            settings.decode_processes, settings.decode_memory, settings.max_decode_seconds
        )
    except ValueError as error:
        raise BadSettings(f"{PREFIX}DECODE_MEMORY={settings.decode_memory}: {error}") from error


def _listeners(app: FastAPI, service: Service) -> list[Listener]:
    """Create the servers of the metrics port and the gRPC port, if they are set.

    Raises BadSettings if the settings contradict each other, or if gRPC is not installed.
    """
    settings = service.settings
    listeners: list[Listener] = []
    if settings.metrics_port is not None:
        if settings.metrics_need_key:
            raise BadSettings(
                f"{PREFIX}METRICS_NEED_KEY has no effect with {PREFIX}METRICS_PORT: clients of "
                "the metrics port never need a key. Remove one of the two settings."
            )
        metrics = Starlette(routes=probes.metrics_router(service).routes)
        listeners.append(SidePort(metrics, settings, settings.metrics_port))
    if settings.grpc_port is not None:
        try:
            from service.grpc.server import RpcServer
        except ImportError as error:
            raise BadSettings(
                f"{PREFIX}GRPC_PORT={settings.grpc_port}: {error}. gRPC needs optional packages. "
                "Install them with: pip install 'shoal[grpc]'. Or remove the setting."
            ) from error
        listeners.append(RpcServer(service, settings, app.version))
    return listeners


def _secret(setting: SecretStr | None) -> str:
    return setting.get_secret_value() if setting else ""


def _described(app: FastAPI, service: Service) -> Callable[[], dict[str, Any]]:
    """Return a function that completes FastAPI's OpenAPI description.

    The function adds the API keys, the schemas of errors, and the schemas of bodies that endpoints
    read without FastAPI.
    """
    describe = app.openapi
    unseen = (
        schemas.ProblemDetails,
        v2_schemas.InferenceError,
        v2_schemas.InferenceRequest,
        v2_schemas.RepositoryRequest,
        v2_schemas.RepositoryIndexRequest,
    )

    def openapi() -> dict[str, Any]:
        description = describe()
        components = description["components"]
        _, definitions = models_json_schema(
            [(schema, "validation") for schema in unseen],
            ref_template="#/components/schemas/{model}",
        )
        components["schemas"] |= definitions["$defs"]
        if service.keys.required or service.admin_keys.required:
            components["securitySchemes"] = SECURITY
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                for_operators = path.startswith(v2_repository.router.prefix)
                keys = service.admin_keys if for_operators else service.keys
                if keys.required and (for_operators or method == "post"):
                    operation["security"] = [{name: []} for name in SECURITY]
        return description

    return openapi
