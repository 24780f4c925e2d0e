"""What browsers are told with every answer, so that pages elsewhere gain nothing from this server.

- Nothing is taken for another type than the one it is sent as.
- Nothing runs in, or is framed by, a page of somebody else; what is not a page may load nothing.
- What a page asks for elsewhere does not say where it was.
- What tells of a moment is not stored; the files of the pages are asked for again by their ETag.

A prediction is the answer to a POST, which nobody stores or frames: it gets the first header only.
A header that a route has set itself stays. TLS, and with it Strict-Transport-Security, is the
proxy's.
"""

from __future__ import annotations

from starlette.types import Scope

DOCS = "/docs"
DOCS_FILES = "/static-offline-docs/"

_NOSNIFF = (b"x-content-type-options", b"nosniff")
_POLICY = b"default-src 'none'; frame-ancestors 'none'"
# FastAPI's page begins with a script of its own, inline; it shows what `/openapi.json` holds.
_DOCS_POLICY = (
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)


def tell(scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
    """Add what is missing to the headers of the answer to `scope`."""
    if scope["method"] == "POST":
        headers.append(_NOSNIFF)
        return
    path: str = scope["path"]
    there = {name for name, _ in headers}
    for name, value in (
        _NOSNIFF,
        (b"content-security-policy", _DOCS_POLICY if path == DOCS else _POLICY),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache" if path.startswith(DOCS_FILES) else b"no-store"),
    ):
        if name not in there:
            headers.append((name, value))
