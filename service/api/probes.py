"""Endpoints for operators: liveness, readiness, and metrics for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse, PlainTextResponse

from batching import Draining
from service import errors
from service.api import schemas
from service.api.scrapes import Scrapes
from service.http import problems
from service.http.api_keys import ApiKeys
from service.http.fast_path import FastRoute
from service.inference.serving import Serving
from service.settings import Settings
from service.telemetry.collectors import EngineCollector
from service.telemetry.metrics import MEDIA_TYPE, Metrics

router = APIRouter(route_class=FastRoute)
scrapes = APIRouter(route_class=FastRoute)
"""`/metrics` alone, which may have a port of its own."""


@router.get(
    "/healthz",
    tags=["probes"],
    summary="Is the process alive?",
    response_model=schemas.Live,
    responses=problems.documented([errors.NotLive]),
)
async def healthz(request: Request) -> Response:
    """200 unless only a restart helps. For liveness probes."""
    serving: Serving = request.app.state.serving
    if not await serving.live():
        raise errors.NotLive
    return JSONResponse({"status": "live"})


@router.get(
    "/readyz",
    tags=["probes"],
    summary="Can it answer requests?",
    response_model=schemas.Ready,
    responses=problems.documented([errors.NotReady, errors.Stalled, errors.DecodersDown, Draining]),
)
async def readyz(request: Request) -> Response:
    """200 when the model is loaded and warm and the engine makes progress, with what serves and on
    what. For readiness probes."""
    serving: Serving = request.app.state.serving
    ready, figures = await serving.available()
    expected = figures.expected if figures is not None else {}
    return JSONResponse(
        {
            "status": "ready",
            "model": {"name": ready.model.name, "version": ready.model.version},
            "device": ready.device.name,
            "device_reason": ready.device.reason,
            "precision": ready.precision.name,
            "precision_reason": ready.precision.reason,
            "latency": {size: round(seconds, 6) for size, seconds in expected.items()},
        }
    )


@scrapes.get(
    "/metrics",
    tags=["probes"],
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses=problems.documented([errors.Unauthorized]),
)
async def metrics(request: Request) -> Response:
    """Counters, histograms and what has a value now, in Prometheus' text format."""
    settings: Settings = request.app.state.settings
    if settings.metrics_need_key:
        keys: ApiKeys = request.app.state.keys
        keys.check(request.headers)
    found: Scrapes = request.app.state.scrapes
    return Response(await found.text(), media_type=MEDIA_TYPE)


async def render(metrics: Metrics, serving: Serving) -> bytes:
    """The text of `/metrics` at the moment."""
    metrics.record_state(serving.uploads.held, serving.decoders.waiting)
    now = EngineCollector(serving.inference.started, serving.draining, await serving.figures())
    return metrics.text(now)
