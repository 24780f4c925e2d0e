"""Serves the page at `/`, on which people upload images and see their classes.

The page consists of the files in `static/`, without a framework or a build step. The files are read
once, when the router is created. The page uses `POST /predict` and `GET /metrics` like any other
client.

Guarantees
- The page loads content from this service only, and has no inline scripts or styles. Browsers
  enforce both rules, because the page has a Content-Security-Policy.
- URLs within the page are relative, so the page works behind a proxy with a path prefix.
"""

from __future__ import annotations

import pathlib

from fastapi import APIRouter

from service.http.files import serve

FOLDER = pathlib.Path(__file__).parent / "static"
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
LINK = b'<nav aria-label="More"><a href="docs">API documentation</a></nav>'
HEADERS = {
    "Cache-Control": "no-cache",  # browsers store the file, and check its ETag before each use
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def router(docs: bool = True) -> APIRouter:
    """Return the routes of the page and its files. `docs`: whether the page links to `/docs`."""
    router = APIRouter(include_in_schema=False)
    for file in sorted(FOLDER.iterdir()):
        if file.suffix not in MEDIA_TYPES:
            continue
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        content = file.read_bytes()
        if path == "/" and not docs:
            content = content.replace(LINK, b"")
        handler = serve(content, MEDIA_TYPES[file.suffix], HEADERS)
        router.add_api_route(path, handler, methods=["GET", "HEAD"])
    return router
