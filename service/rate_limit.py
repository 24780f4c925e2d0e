"""Limits the images that each client may send per second. Pure: callers pass the current time.

A token bucket per client, stored as in the generic cell rate algorithm (ITU-T I.371): one number,
the time at which the bucket will be full again. A request is rejected when that time is further
ahead than the burst allows. Rejections cost nothing, so a client that waits as told is accepted.

A request counts as one image when it begins, before its body is read. When the number of its images
is known, the others are added as a debt, even beyond the burst, and the client is rejected until
the debt is paid off.

Guarantees
- In any period, a request is accepted only if the images that its client is known to have sent
  before are fewer than `burst` plus `rate` for each second.
- A debt of n images is paid off in `n / rate` seconds. It is at most that of the requests that were
  accepted before their images were known: `burst` of them, and `rate` for each second that an
  upload may take, each with at most the maximum number of images per request.
- At most `max_clients` clients are remembered. One whose bucket is full again is forgotten, which
  changes nothing. When there are more, the client that sent a request longest ago gets a full
  bucket early: a client with so many addresses had as many buckets before.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable

from service.errors import RateLimited

MAX_CLIENTS = 65_536
"""Maximum number of clients that are remembered."""
Client = bytes | str
"""What identifies a client: the digest of its API key, or else its network."""
NETWORK_BITS = 64
"""Bits of an IPv6 address that identify a client: it may use all addresses of its network."""


class RateLimiter:
    """Counts the images of all clients."""

    def __init__(self, rate: float, burst: int, max_clients: int = MAX_CLIENTS) -> None:
        """
        Args:
            rate: Images per second, in the long run.
            burst: Images at once.
            max_clients: Maximum number of clients that are remembered.
        """
        self._seconds = 1 / rate
        self._ahead = (burst - 1) / rate
        self._max_clients = max_clients
        # Ordered by last request, the oldest first. A plain dict finds its first key slowly after
        # many deletions.
        self._full_at = OrderedDict[Hashable, float]()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, client: Hashable, now: float) -> None:
        """Count one image, for a request of `client` that begins at `now`. Raises RateLimited."""
        if (seconds := self.wait(client, now)) > 0:
            raise RateLimited(seconds)
        self.owe(client, 1, now)

    def wait(self, client: Hashable, now: float) -> float:
        """Seconds until a request of `client` is accepted. 0: at `now`."""
        return max(0.0, self._full_at.get(client, now) - self._ahead - now)

    def left(self, client: Hashable, now: float) -> float:
        """Number of images that `client` may send at `now` without waiting. Negative: a debt."""
        ahead = max(0.0, self._full_at.get(client, now) - now)
        return 1 + (self._ahead - ahead) / self._seconds

    def give_back(self, client: Hashable, images: float) -> None:
        """Subtract `images` that were counted and not computed."""
        if client in self._full_at:
            self._full_at[client] -= images * self._seconds

    def owe(self, client: Hashable, images: float, now: float) -> None:
        """Add `images` of a request that was accepted, even if they exceed the burst."""
        if images > 0:
            full_at = max(self._full_at.get(client, now), now)
            self._set(client, full_at + images * self._seconds, now)

    def _set(self, client: Hashable, full_at: float, now: float) -> None:
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        for _ in range(2):  # two may go for each new one, so the work is bounded
            self._forget_first(now)

    def _forget_first(self, now: float) -> None:
        first = next(iter(self._full_at))
        full_at = self._full_at[first]
        if full_at <= now or len(self._full_at) > self._max_clients:
            del self._full_at[first]
        elif full_at - now > self._ahead + self._seconds:
            self._full_at.move_to_end(first)  # a debt must not keep the clients behind it


def network(address: str) -> str:
    """The part of an address that identifies a client: all of IPv4, `NETWORK_BITS` of IPv6."""
    if ":" not in address:
        return address
    try:
        full = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if full.ipv4_mapped is not None:
        return str(full.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(full), NETWORK_BITS), strict=False).network_address)
