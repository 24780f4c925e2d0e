"""Limits the number of images that each client may send per second.

This module does no I/O and reads no clock: callers pass the current time, in seconds.

Each client has a token bucket. As in the generic cell rate algorithm (ITU-T I.371), the bucket is
stored as one number: the time at which the bucket will be full again. A request is rejected if the
bucket has less than one token, which means that the stored time is more than `(burst - 1) / rate`
seconds in the future. Rejected requests take no tokens. Therefore, a client that waits for the
number of seconds in `Retry-After` is accepted.

A request takes one token when it begins, before its body is read. Later, the server knows the
number of images in the request. The request then takes a token for each further image, even if the
bucket is empty. The client then has a debt, and its requests are rejected until the debt is paid
off.

Guarantees
- When a request is accepted, fewer than `burst + rate * t` images of its client were counted in the
  preceding t seconds. The limit holds for every t.
- A debt of n images is paid off in `n / rate` seconds.
- A debt comes only from requests that were accepted before their images were counted. There are at
  most `burst + rate * upload_timeout` such requests. The number of images per request is limited,
  too.
- At most `max_clients` clients are remembered. A client with a full bucket can be forgotten without
  effect. If there are too many clients, the client with the oldest last request is forgotten. The
  next request of this client starts with a full bucket. A client with more than `max_clients`
  addresses cannot use this rule to exceed the limit further, because each address already has its
  own bucket.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable

from service.errors import RateLimited

MAX_CLIENTS = 65_536
"""Maximum number of clients that are remembered."""
Client = bytes | str
"""Identifier of a client: the digest of its API key, or its IP address or network if it sent no
key."""
NETWORK_BITS = 64
"""Number of leading bits of an IPv6 address that identify a client. A client can usually use all
addresses that begin with the same bits."""


class RateLimiter:
    """Keeps the token buckets of all clients."""

    def __init__(self, rate: float, burst: int, max_clients: int = MAX_CLIENTS) -> None:
        """
        Args:
            rate: Maximum number of images per second of each client, on average.
            burst: Maximum number of images that a client may send in a burst: the size of a bucket.
            max_clients: Maximum number of clients that are remembered.
        """
        self._seconds = 1 / rate
        self._ahead = (burst - 1) / rate
        self._max_clients = max_clients
        # Client -> time at which its bucket is full, ordered by last request, the oldest first.
        # After many deletions, a plain dict would find its first key slowly.
        self._full_at = OrderedDict[Hashable, float]()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, client: Hashable, now: float) -> None:
        """Take one token for a request of `client` that begins at `now`. Raises RateLimited."""
        if (seconds := self.wait(client, now)) > 0:
            raise RateLimited(seconds)
        self.owe(client, 1, now)

    def wait(self, client: Hashable, now: float) -> float:
        """Return how many seconds after `now` a request of `client` is accepted. 0: immediately."""
        return max(0.0, self._full_at.get(client, now) - self._ahead - now)

    def left(self, client: Hashable, now: float) -> float:
        """Return the number of images that `client` may send at `now`. A negative number is the
        debt of `client`."""
        ahead = max(0.0, self._full_at.get(client, now) - now)
        return 1 + (self._ahead - ahead) / self._seconds

    def give_back(self, client: Hashable, images: float) -> None:
        """Put tokens back into the bucket of `client` for `images` that were not classified."""
        if client in self._full_at:
            self._full_at[client] -= images * self._seconds

    def owe(self, client: Hashable, images: float, now: float) -> None:
        """Take tokens for `images` of an accepted request, even if the bucket has fewer tokens."""
        if images > 0:
            full_at = max(self._full_at.get(client, now), now)
            self._set(client, full_at + images * self._seconds, now)

    def _set(self, client: Hashable, full_at: float, now: float) -> None:
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        for _ in range(2):  # removes clients faster than they are added, at a constant cost
            self._forget_first(now)

    def _forget_first(self, now: float) -> None:
        first = next(iter(self._full_at))
        full_at = self._full_at[first]
        if full_at <= now or len(self._full_at) > self._max_clients:
            del self._full_at[first]
        elif full_at - now > self._ahead + self._seconds:
            # Otherwise, a client with a debt would keep later clients from being forgotten.
            self._full_at.move_to_end(first)


def network(address: str) -> str:
    """Return the part of an IP address that identifies a client.

    The result is the whole IPv4 address, or the network of the first `NETWORK_BITS` of an IPv6
    address. Text that is not an IP address is returned unchanged.
    """
    if ":" not in address:
        return address
    try:
        full = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if full.ipv4_mapped is not None:
        return str(full.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(full), NETWORK_BITS), strict=False).network_address)
