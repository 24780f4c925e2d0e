"""Checks the host of requests, and rejects cross-site requests of browsers.

A browser sends requests for any page, also to servers that only its user can reach: on localhost,
or behind a firewall. Two checks, made before a body is read, protect such servers.

- Host. With DNS rebinding, the owner of attacker.example points that name to this server, so both
  are the same origin and pages of attacker.example can read every answer. Their requests still name
  attacker.example as host. So requests are accepted only for hosts that an attacker cannot point to
  this server: IP addresses, localhost, the name in `SHOAL_HOST` and those in `SHOAL_ALLOWED_HOSTS`.
  Probes and metrics are exempt.
- Cross-site requests. A page of another origin cannot read an answer, but could make its visitors'
  browsers send requests that compute or change something. Browsers mark these with `Sec-Fetch-Site`
  (https://www.w3.org/TR/fetch-metadata/), or with `Origin` (RFC 6454) where they do not send it
  (plain HTTP). Requests with neither header do not come from a page. This is the algorithm of Go's
  `http.CrossOriginProtection`.

`X-Forwarded-Host` counts from trusted proxies only, and in addition to `Host`. It never replaces
it: a page in a browser on a trusted machine could send a forged one.
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
"""Paths that probes and scrapers request every few seconds, under any host name."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that compute and change nothing (RFC 9110, section 9.2.1)."""
DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
MAX_HOST_BYTES = 260
"""Maximum number of bytes of a DNS name with its port. Longer values are rejected."""
CACHED_HOSTS = 1024
"""Number of hosts whose decisions are cached."""
ANY = "*"


class AllowedHosts:
    """Decides which values of `Host` are accepted."""

    def __init__(self, bound: str, allowed: Iterable[str]) -> None:
        """
        Args:
            bound: The name or address that the server listens on.
            allowed: Names such as example.com, patterns such as *.example.com for all names below
                it, or * for every host. Ports are ignored.
        """
        listed = ["localhost", bound, *allowed]
        self._any = ANY in listed
        self._names = frozenset(name for name in map(host_name, listed) if name)
        self._endings = tuple(name[1:] for name in self._names if name.startswith("*."))
        self._cached = functools.lru_cache(CACHED_HOSTS)(self._accepts)

    def __str__(self) -> str:
        """Describe the hosts for the log, such as "any IP address, localhost, example.com"."""
        if self._any:
            return "every host"
        names = sorted(name for name in self._names if not _is_address(name))
        return ", ".join(["any IP address", *names])

    def accepts(self, host: bytes) -> bool:
        """Whether requests with this `Host` are accepted. It may have a port."""
        return self._any or (len(host) <= MAX_HOST_BYTES and self._cached(host))

    def _accepts(self, host: bytes) -> bool:
        name = host_name(host.decode("latin-1"))
        if name is None or name.startswith("*"):
            return False
        return name in self._names or name.endswith(self._endings) or _is_address(name)


class Guard:
    """Rejects requests for unknown hosts, and cross-site requests that compute or change something,
    before their body is read."""

    rejections = (errors.UnknownHost, errors.CrossSite)
    """What `check` raises."""

    def __init__(self, settings: Settings) -> None:
        """`settings`: those with the accepted hosts and origins."""
        self.accepted = set[bytes]()
        """Hosts that were accepted: at most `CACHED_HOSTS`, of at most `MAX_HOST_BYTES` each."""
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
    """The hosts that a server with these settings accepts."""
    return AllowedHosts(settings.host, split(settings.allowed_hosts))


def same_origin(origin: bytes, hosts: Iterable[bytes]) -> bool:
    """Whether `origin` names one of `hosts` and its port. The scheme is not compared: a proxy that
    ends TLS speaks plain HTTP to this server."""
    scheme, _, authority = origin.lower().partition(b"://")
    port = DEFAULT_PORTS.get(scheme)
    if port is None:  # `null`, or not the origin of a web page
        return False
    return authority.removesuffix(port) in [host.lower().removesuffix(port) for host in hosts]


def is_loopback(bound: str) -> bool:
    """Whether a server that listens on `bound` can be reached from its own machine only."""
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
        f"This server does not answer requests {what}. Use its IP address or one of its names; its "
        f"operator sets the names in {PREFIX}ALLOWED_HOSTS."
    )
