"""Adds response headers that protect users of browsers.

- X-Content-Type-Options: browsers use the content type of the response and do not guess another
  type.
- Content-Security-Policy: other pages cannot embed a response in a frame, and a response that is
  not a page cannot load anything.
- Referrer-Policy: browsers do not send the URL of a page to other servers.
- Cache-Control: browsers do not store responses. The files of `/docs` are an exception: browsers
  may store a file, and check its ETag before each use.

A response to a POST request gets only X-Content-Type-Options, since browsers neither store nor
embed such responses. Headers that an endpoint has set are not replaced. Strict-Transport-Security
is not added, because only the proxy that is responsible for TLS can add it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from starlette.types import Scope

DOCS = "/docs"
"""Path of FastAPI's documentation page."""
DOCS_FILES = "/static-offline-docs/"
"""Path of the files that the documentation page loads."""

_NOSNIFF = (b"x-content-type-options", b"nosniff")
_POLICY = b"default-src 'none'; frame-ancestors 'none'"
# FastAPI's documentation page contains an inline script and inline styles.
_DOCS_POLICY = (
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)


FOR_POST = [_NOSNIFF]
"""Headers to add to the responses to POST requests."""


def for_get(scope: Scope, present: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers to add to the response to a request with a method other than POST.

    Args:
        scope: The ASGI scope of the request.
        present: The headers that the response has already. They are not replaced.
    """
    path: str = scope["path"]
    names = {name for name, _ in present}
    for name, value in (
        _NOSNIFF,
        (b"content-security-policy", _DOCS_POLICY if path == DOCS else _POLICY),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache" if path.startswith(DOCS_FILES) else b"no-store"),
    ):
        if name not in names:
            yield name, value
