"""Reads the headers of trusted proxies: the address of the client, and the host it requested."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.http.context import context_of
from service.settings import split

HOST, FOR = b"x-forwarded-host", b"x-forwarded-for"
PROXY_HEADERS = frozenset({HOST, FOR, b"x-forwarded-proto"})
"""The headers that are read."""
MAX_BYTES = 1024
"""Maximum number of bytes of a header that are read, all lines of it together."""
MAX_NAMES = 16
"""Maximum number of names or addresses in a header that are read: each takes some 5 us."""


class ProxyHeaders:
    """ASGI middleware that reads the headers of trusted proxies and ignores those of other peers.

    uvicorn's middleware takes the client's address and scheme from `X-Forwarded-For` and
    `X-Forwarded-Proto`. This one adds `RequestContext.forwarded_hosts`.

    Proxies pass on what their clients sent, so the headers are bounded by `MAX_BYTES` and
    `MAX_NAMES`. Of a longer `X-Forwarded-For` only the last addresses are read. Proxies append
    theirs, so the client's is among those. A longer `X-Forwarded-Host` is read as a single name,
    and rejected.
    """

    def __init__(self, app: ASGIApp, trusted: str) -> None:
        """
        Args:
            app: The application.
            trusted: Addresses and networks of trusted proxies, separated by commas.
        """
        self._uvicorn = ProxyHeadersMiddleware(app, split(trusted))  # type: ignore[arg-type]  # the same protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Afterwards, uvicorn's middleware replaces the proxy's address with the client's.
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
    """The values of all lines of a header, which together are one list (RFC 9110, section 5.3)."""
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
    # With one name more, which may be a part of one, and is left out.
    last = value[-MAX_BYTES:].rsplit(b",", MAX_NAMES)[1:]
    others = [field for field in scope["headers"] if field[0] != FOR]
    scope["headers"] = [*others, (FOR, b",".join(last))]
