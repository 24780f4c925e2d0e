"""Headers of trusted proxies: the address of the client, and the host that it requested."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.http.request_headers import headers
from service.settings import split

FORWARDED_HOSTS = "shoal.forwarded_hosts"
"""Key in a scope: the values of `X-Forwarded-Host` that a trusted proxy sent."""
NAME = b"x-forwarded-host"


class ProxyHeaders:
    """ASGI middleware that reads the headers of trusted proxies and ignores those of other peers.

    uvicorn's middleware takes the client's address and scheme from `X-Forwarded-For` and
    `X-Forwarded-Proto`. This one adds `FORWARDED_HOSTS`.
    """

    def __init__(self, app: ASGIApp, trusted: str) -> None:
        """`trusted`: addresses and networks, separated by commas."""
        self._uvicorn = ProxyHeadersMiddleware(app, split(trusted))  # type: ignore[arg-type]  # the same protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Before uvicorn's middleware replaces the proxy's address with the client's.
        if scope["type"] == "http" and NAME in headers(scope) and self._trusts(scope):
            lines = b",".join(value for name, value in scope["headers"] if name == NAME)
            scope[FORWARDED_HOSTS] = [host.strip() for host in lines.split(b",") if host.strip()]
        await self._uvicorn(scope, receive, send)  # type: ignore[arg-type]

    def _trusts(self, scope: Scope) -> bool:
        client = scope.get("client")
        return client is not None and client[0] in self._uvicorn.trusted_hosts
