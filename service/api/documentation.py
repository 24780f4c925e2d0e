"""Serves the OpenAPI description at `/openapi.json`, and the scripts and styles of `/docs`.

The content is kept in memory. Without this module, FastAPI would render the description for each
request, and Starlette would open each file in a thread. Both would slow down the event loop.
Clients without an API key may send such requests, so they could overload the server.
"""

from __future__ import annotations

import functools
import pathlib

import fastapi_offline
import orjson
from fastapi import APIRouter, FastAPI, Request, Response

from service.http.files import Handler, serve
from service.http.middleware import FastRoute
from service.http.security_headers import DOCS_FILES

FOLDER = pathlib.Path(fastapi_offline.__file__).parent / "static"
MEDIA_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
"""Maps each file that `/docs` loads from the package fastapi_offline to its media type."""
HEADERS = {"Cache-Control": "no-cache"}
"""Headers of the responses. Browsers store the content, and check its ETag before each use."""


def replace_routes(app: FastAPI) -> None:
    """Replace the routes that FastAPIOffline added for the OpenAPI description and the files."""
    router = APIRouter(include_in_schema=False, route_class=FastRoute)
    router.add_api_route("/openapi.json", _description(app), methods=["GET", "HEAD"])
    for name, media_type in MEDIA_TYPES.items():
        file = serve((FOLDER / name).read_bytes(), media_type, HEADERS)
        router.add_api_route(f"{DOCS_FILES}{name}", file, methods=["GET", "HEAD"])
    replaced = {"/openapi.json", DOCS_FILES.rstrip("/")}
    kept = [route for route in app.routes if getattr(route, "path", None) not in replaced]
    app.router.routes[:] = [*router.routes, *kept]


def _description(app: FastAPI) -> Handler:
    """Return a handler that renders the description at the first request, when all routes exist."""

    @functools.cache
    def rendered() -> Handler:
        return serve(orjson.dumps(app.openapi()), "application/json", HEADERS)

    async def description(request: Request) -> Response:
        return await rendered()(request)

    return description
