"""Serves the endpoints for operators: the liveness probe, the readiness probe, and the metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse, PlainTextResponse

from batching import Draining
from service import errors
from service.api import schemas
from service.api.scrapes import Scrapes
from service.http import problems
from service.http.middleware import FastRoute
from service.inference.pipeline import service_of
from service.inference.service import Service
from service.telemetry.collectors import EngineCollector
from service.telemetry.metrics import MEDIA_TYPE

router = APIRouter(route_class=FastRoute)


@router.get(
    "/healthz",
    tags=["probes"],
    summary="Is the process alive?",
    response_model=schemas.Live,
    responses=problems.documented([errors.NotLive]),
)
async def healthz(request: Request) -> Response:
    """Liveness probe: returns 503 if the engine has failed and the process must be restarted, and
    200 otherwise."""
    if not await service_of(request).is_live():
        raise errors.NotLive
    return JSONResponse({"status": "live"})


@router.get(
    "/readyz",
    tags=["probes"],
    summary="Can the server classify images?",
    response_model=schemas.Ready,
    responses=problems.documented([errors.NotReady, errors.Stalled, errors.DecodersDown, Draining]),
)
async def readyz(request: Request) -> Response:
    """Readiness probe: returns 200 if the server can classify images now, and 503 otherwise.

    The server can classify images when the model is loaded and warmed up, and the engine and the
    decoders work. The response names the model, the device and the backend.
    """
    loaded, stats = await service_of(request).check_ready()
    expected = stats.expected if stats is not None else {}
    return JSONResponse(
        {
            "status": "ready",
            "model": {"name": loaded.model.name, "version": loaded.model.version},
            "device": loaded.device.name,
            "device_reason": loaded.device.reason,
            "backend": loaded.backend.name,
            "backend_reason": loaded.backend.reason,
            "precision": loaded.precision.name,
            "precision_reason": loaded.precision.reason,
            "latency": {size: round(seconds, 6) for size, seconds in expected.items()},
        }
    )


def metrics_router(service: Service) -> APIRouter:
    """Return a router with `/metrics`, for the main port or for SHOAL_METRICS_PORT."""
    router = APIRouter(route_class=FastRoute)

    async def render() -> bytes:
        service.metrics.record_state(service.uploads.held, service.decoders.waiting)
        stats = await service.engine_stats()
        return service.metrics.text(EngineCollector(service.engine.loaded, service.draining, stats))

    scrapes = Scrapes(render)

    @router.get(
        "/metrics",
        tags=["probes"],
        summary="Metrics for Prometheus",
        response_class=PlainTextResponse,
        responses=problems.documented([errors.Unauthorized]),
    )
    async def metrics(request: Request) -> Response:
        """Return the metrics in Prometheus' text format."""
        if service.settings.metrics_need_key:
            service.keys.check(request.headers)
        return Response(await scrapes.text(), media_type=MEDIA_TYPE)

    return router
