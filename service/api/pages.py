"""The page at `/`: drop a picture and see what the network makes of it.

Promises
    Plain files in `static/`, without a framework or a build step, read once as the router is
    made. Everything on the page comes from this service, and the browser is told to see to that.

Left to others
    The answers: the page asks `POST /predict` and `GET /metrics` as any client does.

Invariants
    The addresses within the page are relative, so that it also works behind a proxy's prefix.
    No script and no style inline: the policy below forbids both.
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
    "Cache-Control": "no-cache",  # kept, and asked for again by its ETag
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def router(docs: bool = True) -> APIRouter:
    """`/`, and what it needs below `/page/`; `docs`: it links to `/docs`."""
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
