"""Checks the host of requests, and rejects cross-site requests of browsers.

Any web page can make a browser send requests, even to servers that only the user of the browser can
reach: servers on localhost or behind a firewall. Two checks protect such servers. Both checks take
place before the body of a request is read.

- Host: In an attack by DNS rebinding, the owner of attacker.example lets that name resolve to the
  address of this server. The browser then treats attacker.example and this server as the same
  origin, so a page of attacker.example could read responses of this server. However, the requests
  of that page have the header `Host: attacker.example`. So requests are accepted only for hosts
  that an attacker does not control. These are IP addresses, localhost, the name in `SHOAL_HOST`,
  and the names in `SHOAL_ALLOWED_HOSTS`. Probes and metrics are exempt.
- Cross-site requests: A page of another origin cannot read responses of this server. However, the
  page could make browsers send requests that start work or change state. Browsers mark such
  requests with `Sec-Fetch-Site` (https://www.w3.org/TR/fetch-metadata/). Over plain HTTP, some
  browsers send only `Origin` (RFC 6454). A request with neither header does not come from a web
  page. Go's `http.CrossOriginProtection` uses the same algorithm.

`X-Forwarded-Host` is read only if a trusted proxy sent it. The host in `Host` is checked as well.
Otherwise, a page could send a forged `X-Forwarded-Host` from a browser on the server's own machine,
which is a trusted proxy by default.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from starlette.types import Scope

from service import errors
from service.http.context import context_of
from service.settings import PREFIX, Settings, host_name, split

BROWSER_HEADERS = frozenset({b"origin", b"sec-fetch-site", b"x-forwarded-host"})
"""Headers that `Guard.check` reads besides Host."""
PROBE_PATHS = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
"""Paths for monitoring systems. Requests for these paths may name any host."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods of requests that change nothing (RFC 9110, section 9.2.1)."""
DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
"""Maps each scheme to the port that an origin may omit."""
MAX_HOST_BYTES = 260
"""Maximum number of bytes of a `Host` header. A DNS name with its port is at most this long."""
CACHED_HOSTS = 1024
"""Maximum number of accepted hosts that are cached."""
ANY = "*"
"""Entry in a setting that allows every host or every origin."""


class AllowedHosts:
    """Decides whether requests for a host are accepted."""

    def __init__(self, bound: str, allowed: Iterable[str]) -> None:
        """
        Args:
            bound: The name or address that the server listens on.
            allowed: Names such as example.com, patterns such as *.example.com for all subdomains,
                or * for every host. Ports are ignored.
        """
        listed = ["localhost", bound, *allowed]
        self._any = ANY in listed
        self._names = frozenset(name for name in map(host_name, listed) if name)
        self._endings = tuple(name[1:] for name in self._names if name.startswith("*."))
        self._cached = functools.lru_cache(CACHED_HOSTS)(self._accepts)

    def __str__(self) -> str:
        """Describe the accepted hosts, for example "any IP address, localhost, example.com"."""
        if self._any:
            return "every host"
        names = sorted(name for name in self._names if not _is_address(name))
        return ", ".join(["any IP address", *names])

    def accepts(self, host: bytes) -> bool:
        """Whether requests for `host` are accepted. `host` may contain a port."""
        return self._any or (len(host) <= MAX_HOST_BYTES and self._cached(host))

    def _accepts(self, host: bytes) -> bool:
        name = host_name(host.decode("latin-1"))
        if name is None or name.startswith("*"):
            return False
        return name in self._names or name.endswith(self._endings) or _is_address(name)


class Guard:
    """Rejects requests for unknown hosts, and cross-site requests that start work or change state.

    The body of a request is not needed for the check.
    """

    rejections = (errors.UnknownHost, errors.CrossSite)
    """The exceptions that `check` raises."""

    def __init__(self, settings: Settings) -> None:
        """
        Args:
            settings: The settings with the allowed hosts and origins.
        """
        self.accepted = set[bytes]()
        """Hosts that were accepted before. At most `CACHED_HOSTS` entries, each at most
        `MAX_HOST_BYTES` bytes long."""
        self._hosts = allowed_hosts(settings)
        self._origins = frozenset(origin.encode() for origin in split(settings.cors_origins))
        self._any_origin = ANY.encode() in self._origins

    def check(self, scope: Scope) -> None:
        """Check a request. Raises UnknownHost, CrossSite."""
        context = context_of(scope)
        host = context.headers.get(b"host", b"")
        hosts = [host, *context.forwarded_hosts]
        if scope["path"] not in PROBE_PATHS:
            for name in hosts:
                if not self._hosts.accepts(name):
                    raise _unknown(name)
            if len(self.accepted) < CACHED_HOSTS and len(host) <= MAX_HOST_BYTES:
                self.accepted.add(host)
        if scope["method"] in SAFE_METHODS or self._any_origin:
            return
        site, origin = context.headers.get(b"sec-fetch-site"), context.headers.get(b"origin")
        if origin in self._origins:
            return
        if site is not None:
            if site not in (b"same-origin", b"none"):
                raise errors.CrossSite
        elif origin is not None and not same_origin(origin, hosts):
            raise errors.CrossSite


def allowed_hosts(settings: Settings) -> AllowedHosts:
    """Return the hosts that requests to a server with these settings may name."""
    return AllowedHosts(settings.host, split(settings.allowed_hosts))


def same_origin(origin: bytes, hosts: Iterable[bytes]) -> bool:
    """Whether `origin` has the same name and port as one of `hosts`.

    The scheme is not compared: behind a proxy for TLS, the origin has the scheme https, but this
    server gets plain HTTP.
    """
    scheme, _, authority = origin.lower().partition(b"://")
    port = DEFAULT_PORTS.get(scheme)
    if port is None:  # the origin is `null`, or its scheme is not HTTP or HTTPS
        return False
    return authority.removesuffix(port) in [host.lower().removesuffix(port) for host in hosts]


def is_loopback(bound: str) -> bool:
    """Whether only clients on the same machine can reach a server that listens on `bound`."""
    try:
        return ipaddress.ip_address(bound).is_loopback
    except ValueError:
        return host_name(bound) == "localhost"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _unknown(host: bytes) -> errors.UnknownHost:
    shown = host[:MAX_HOST_BYTES].decode("latin-1")
    what = f"for the host {shown!r}" if host else "without a Host header"
    return errors.UnknownHost(
        f"This server does not accept requests {what}. Use the IP address or a name of this "
        f"server. The operator of this server sets the names in {PREFIX}ALLOWED_HOSTS."
    )
