"""Response headers that keep pages of other origins from using this server's answers.

- A browser does not guess another type than the one that is sent.
- A page of another origin cannot frame an answer, and an answer that is not a page loads nothing.
- A page does not tell other servers where it was.
- Answers that change are not stored. Files of the pages are validated by their ETag.

An answer to a POST is neither stored nor framed by browsers: it gets the first header only. A
header that an endpoint sets stays. The proxy in front is responsible for TLS, and with it for
Strict-Transport-Security.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from starlette.types import Scope

DOCS = "/docs"
DOCS_FILES = "/static-offline-docs/"

_NOSNIFF = (b"x-content-type-options", b"nosniff")
_POLICY = b"default-src 'none'; frame-ancestors 'none'"
# FastAPI's page begins with an inline script.
_DOCS_POLICY = (
    b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'"
)


FOR_POST = [_NOSNIFF]
"""Headers of the answers to POST requests."""


def for_get(scope: Scope, present: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers to add to the answer to a request with another method than POST.

    Args:
        scope: The ASGI scope of the request.
        present: The headers that the answer has. They are not replaced.
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
