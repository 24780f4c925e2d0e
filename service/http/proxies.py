"""Reads the headers of trusted proxies: the client's address, and the host of its request."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.http.context import context_of
from service.settings import split

HOST, FOR = b"x-forwarded-host", b"x-forwarded-for"
PROXY_HEADERS = frozenset({HOST, FOR, b"x-forwarded-proto"})
"""Names of the headers that this module and uvicorn's middleware read."""
MAX_BYTES = 1024
"""Maximum number of bytes that are read from a header. All lines of a header count together."""
MAX_NAMES = 16
"""Maximum number of names or addresses that are read from a header. Each name or address takes
about 5 us."""


class ProxyHeaders:
    """ASGI middleware that reads the headers of trusted proxies, and of no other clients.

    uvicorn's middleware reads the client's address from `X-Forwarded-For` and the scheme from
    `X-Forwarded-Proto`. This middleware reads `X-Forwarded-Host` into
    `RequestContext.forwarded_hosts`, and then calls uvicorn's middleware.

    Proxies pass on headers of any length from their clients, so `MAX_BYTES` and `MAX_NAMES` limit
    the work. If `X-Forwarded-For` exceeds a limit, only its last addresses are read. The last
    addresses include the client's address, because proxies append this address. If
    `X-Forwarded-Host` exceeds a limit, its value counts as one name, and the host check rejects
    this name.
    """

    def __init__(self, app: ASGIApp, trusted: str) -> None:
        """
        Args:
            app: The application to call.
            trusted: Addresses and networks of trusted proxies, separated by commas.
        """
        self._uvicorn = ProxyHeadersMiddleware(app, split(trusted))  # type: ignore[arg-type]  # the same protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # These headers must be read before uvicorn's middleware replaces the proxy's address in
        # `scope`.
        context = context_of(scope)
        if HOST in context.headers and self._trusts(scope):
            context.forwarded_hosts = _hosts(_joined(scope, HOST))
        if FOR in context.headers and self._trusts(scope):
            _cut_addresses(scope)
        await self._uvicorn(scope, receive, send)  # type: ignore[arg-type]

    def _trusts(self, scope: Scope) -> bool:
        client = scope.get("client")
        return client is not None and client[0] in self._uvicorn.trusted_hosts


def _joined(scope: Scope, name: bytes) -> bytes:
    """Join the values of all lines of a header into one list (RFC 9110, section 5.3)."""
    return b",".join(value for key, value in scope["headers"] if key == name)


def _is_bounded(value: bytes) -> bool:
    return len(value) <= MAX_BYTES and value.count(b",") < MAX_NAMES


def _hosts(value: bytes) -> list[bytes]:
    if not _is_bounded(value):
        return [value]
    return [host.strip() for host in value.split(b",") if host.strip()]


def _cut_addresses(scope: Scope) -> None:
    """Replace an `X-Forwarded-For` that is too long with its last addresses."""
    value = _joined(scope, FOR)
    if _is_bounded(value):
        return
    # The first piece is dropped, because it may be only a part of an address.
    last = value[-MAX_BYTES:].rsplit(b",", MAX_NAMES)[1:]
    others = [field for field in scope["headers"] if field[0] != FOR]
    scope["headers"] = [*others, (FOR, b",".join(last))]
