"""Reads the headers of trusted proxies: the address of the client, and the host it requested."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.http.context import context_of
from service.settings import split

NAME = b"x-forwarded-host"
PROXY_HEADERS = frozenset({NAME, b"x-forwarded-for", b"x-forwarded-proto"})
"""The headers that are read."""


class ProxyHeaders:
    """ASGI middleware that reads the headers of trusted proxies and ignores those of other peers.

    uvicorn's middleware takes the client's address and scheme from `X-Forwarded-For` and
    `X-Forwarded-Proto`. This one adds `RequestContext.forwarded_hosts`.
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
        if NAME in context.headers and self._trusts(scope):
            lines = b",".join(value for name, value in scope["headers"] if name == NAME)
            context.forwarded_hosts = [host.strip() for host in lines.split(b",") if host.strip()]
        await self._uvicorn(scope, receive, send)  # type: ignore[arg-type]

    def _trusts(self, scope: Scope) -> bool:
        client = scope.get("client")
        return client is not None and client[0] in self._uvicorn.trusted_hosts
