"""`create_app(settings)`: the only place that builds things. Nothing is built at import."""

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

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi_offline import FastAPIOffline
from pydantic import SecretStr
from pydantic.json_schema import models_json_schema
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

import model_store.engine
from model_store.engine import GluonEngine
from service import errors
from service.api import documentation, pages, predict, probes, schemas
from service.api.scrapes import Scrapes
from service.decoding.limits import Limits, limits
from service.decoding.pool import Decoders
from service.http import problems
from service.http.api_keys import ApiKeys
from service.http.fast_path import FastPath
from service.http.middleware import ROUTINE, RequestMiddleware
from service.http.origins import Guard
from service.inference.model_host import LoadEngine, ModelHost
from service.inference.pipeline import Provisions
from service.inference.repository import Repository
from service.inference.repository import folder as folder_of
from service.inference.serving import Decoding, Inference, Serving, Versions
from service.rate_limit import RateLimiter
from service.server.server import Listener, SidePort
from service.settings import PREFIX, BadSettings, Settings, split
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import from_environment
from service.v2 import repository as v2_repository
from service.v2 import routes as v2_routes
from service.v2 import schemas as v2_schemas
from service.v2.schemas import LENGTH_HEADER
from service.workers import engine_process
from service.workers.engine_client import DecoderClient, EngineClient
from service.workers.engine_server import EngineServer

DESCRIPTION = """\
Image classification with dynamic micro-batching. Send one image to `POST /predict` and get its
class and softmax probability, several to `POST /predict/batch`, or speak the Open Inference
Protocol v2 below `/v2`. Every error elsewhere is `application/problem+json` (RFC 9457).
"""
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


LOAD_ENGINE = "service.app:load_engine"


def load_engine(settings: Settings) -> AbstractAsyncContextManager[GluonEngine]:
    """The engine for the model that the settings name. Raises BadModel."""
    return model_store.engine.load_engine(
        folder_of(settings),
        settings.device,
        settings.engine_threads,
        settings.max_batch_size,
        settings.precision,
        settings.engine_lanes,
    )


def imported(path: str) -> LoadEngine:
    """What `module:function` names, as `load_engine` of this one."""
    module, _, name = path.partition(":")
    return cast(LoadEngine, getattr(importlib.import_module(module), name))


def create_app(
    settings: Settings, load_engine: LoadEngine = load_engine, folder: str | None = None
) -> FastAPI:
    """The application: an ASGI app whose lifespan loads the model and drains on the way out.

    `folder`: of several processes, one of which has the engine: it is not loaded here.

    Raises BadSettings where keys cannot be used, or packages are missing.
    """
    keys = ApiKeys(_secret(settings.api_keys), settings.api_keys_file)
    admin_keys = ApiKeys(
        _secret(settings.admin_keys), settings.admin_keys_file, "ADMIN_KEYS", errors.NotAdmin
    )
    tracing = from_environment(os.environ)
    metrics = Metrics(folder)
    engine: Inference
    versions: Versions
    decoders: Decoding
    if folder is None:
        # A model that cannot be served ends the process, as the signal does.
        stop = partial(signal.raise_signal, signal.SIGTERM)
        engine = local = ModelHost(settings, load_engine, metrics, stop, tracing=tracing)
        versions = Repository(settings, local, metrics.count_load)
        decoders = Decoders(_decode_limits(settings), metrics.count_decoder_kill)
    else:
        engine = versions = EngineClient(folder)
        decoders = DecoderClient(folder, _decode_limits(settings))
    serving = Serving(settings, engine, decoders)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with serving.running(), _noting(metrics, serving, often=folder is not None):
            yield
        if tracing is not None:
            await tracing.close()

    without = partial(FastAPI, docs_url=None, openapi_url=None)
    build: Callable[..., FastAPI] = FastAPIOffline if settings.docs else without
    app = build(
        title="Shoal",
        version="0.1.0",
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
            "exclude": lambda scope: scope["path"] in ROUTINE,
        },
    )
    app.state.settings = settings
    app.state.serving = serving
    app.state.metrics = metrics
    app.state.scrapes = Scrapes(partial(probes.render, metrics, serving))
    app.state.tracing = tracing
    app.state.keys = keys
    app.state.provisions = Provisions(settings, serving, keys, _rates(settings), tracing)
    app.state.admin_keys = admin_keys
    app.state.repository = versions
    app.state.listeners = _listeners(app, settings)
    if settings.docs:
        documentation.replace_routes(app)
    # first, and found without a detour
    app.router.routes[:0] = [
        *predict.router.routes,
        *probes.router.routes,
        *([] if settings.metrics_port is not None else probes.scrapes.routes),
        *v2_routes.router.routes,
        *v2_repository.router.routes,
    ]
    if settings.page:
        app.include_router(pages.router(settings.docs))
    for kind in problems.ANSWERED:
        app.add_exception_handler(kind, problems.handle)
    if origins := split(settings.cors_origins):
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "Server-Timing", "Retry-After", LENGTH_HEADER],
        )
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(RequestMiddleware, count=metrics, serving=serving)  # outermost
    app.openapi = _described(app)  # type: ignore[method-assign]  # FastAPI's own way
    if tracing is None:
        app.build_middleware_stack = partial(_lean_stack, app)  # type: ignore[method-assign]
    return app


def _lean_stack(app: FastAPI) -> ASGIApp:
    """FastAPI's stack without the layers that nothing here needs, and with the fast path."""
    stack: ASGIApp = AsyncExitStackMiddleware(app.router)
    stack = ExceptionMiddleware(stack, app.exception_handlers)
    stack = FastPath(stack, app.routes)
    for layer, positional, named in reversed(app.user_middleware):
        stack = layer(stack, *positional, **named)
    return stack


def _rates(settings: Settings) -> RateLimiter | None:
    if settings.rate_limit is None:
        return None
    burst = settings.rate_burst or max(1, math.floor(settings.rate_limit))
    return RateLimiter(settings.rate_limit, burst)


@asynccontextmanager
async def _noting(metrics: Metrics, serving: Serving, often: bool) -> AsyncIterator[None]:
    """Within, what this process holds is noted every second for others to add up, if there are
    any; who is asked himself looks anew."""

    async def note() -> None:
        while often:
            metrics.record_state(serving.uploads.held, serving.decoders.waiting)
            await asyncio.sleep(1)

    noting = asyncio.create_task(note())
    try:
        yield
    finally:
        noting.cancel()


def create_hub(
    settings: Settings, load_engine: LoadEngine, folder: str, on_failure: Callable[[], None]
) -> EngineServer:
    """The engine that front ends in other processes share; `folder` is theirs, too."""
    metrics = Metrics(folder)
    local = ModelHost(
        settings,
        load_engine,
        metrics,
        on_failure,
        on_change=lambda: hub.announce(),
        on_failing=engine_process.restart,
    )
    decoders = Decoders(_decode_limits(settings), metrics.count_decoder_kill)
    hub = EngineServer(local, Repository(settings, local, metrics.count_load), decoders)
    return hub


def _decode_limits(settings: Settings) -> Limits:
    """Raises BadSettings."""
    try:
        return limits(
            settings.decode_processes, settings.decode_memory, settings.max_decode_seconds
        )
    except ValueError as error:
        raise BadSettings(f"{PREFIX}DECODE_MEMORY={settings.decode_memory}: {error}") from error


def _listeners(app: FastAPI, settings: Settings) -> list[Listener]:
    """What serves beside the application, on ports of their own. Raises BadSettings."""
    found: list[Listener] = []
    if settings.metrics_port is not None:
        if settings.metrics_need_key:
            raise BadSettings(
                f"{PREFIX}METRICS_NEED_KEY: on {PREFIX}METRICS_PORT, a port of their own, metrics "
                "want no key. Leave out one of the two"
            )
        metrics = Starlette(routes=probes.scrapes.routes)
        metrics.state = app.state
        found.append(SidePort(metrics, settings, settings.metrics_port))
    if settings.grpc_port is not None:
        try:
            from service.grpc.server import RpcServer
        except ImportError as error:
            raise BadSettings(
                f"{PREFIX}GRPC_PORT={settings.grpc_port}: {error}; gRPC wants the packages of an "
                "extra: pip install 'shoal[grpc]', or leave the setting out"
            ) from error
        found.append(RpcServer(app.state, settings, app.version))
    return found


def _secret(setting: SecretStr | None) -> str:
    return setting.get_secret_value() if setting else ""


def _described(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """FastAPI's description, the shapes that it does not see (of errors, and of bodies that we
    read ourselves), and how to send a key where one is wanted."""
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
        _, shapes = models_json_schema(
            [(shape, "validation") for shape in unseen],
            ref_template="#/components/schemas/{model}",
        )
        components["schemas"] |= shapes["$defs"]
        state = app.state
        if state.keys.wanted or state.admin_keys.wanted:
            components["securitySchemes"] = SECURITY
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                administers = path.startswith(v2_repository.router.prefix)
                keys = state.admin_keys if administers else state.keys
                if keys.wanted and (administers or method == "post"):
                    operation["security"] = [{name: []} for name in SECURITY]
        return description

    return openapi
