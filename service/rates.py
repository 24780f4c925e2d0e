"""Rates: how often each client may ask, where the settings say so. Pure: it is told the time.

A token bucket a client, kept as the generic cell rate algorithm does (ITU-T I.371): one number,
the moment at which the bucket will be full again. Who asks when it lies further ahead than the
burst allows is refused, and refusals cost nothing, so that who waits as told is welcome.

Promises
- No client gets more than `burst` and then `rate` requests a second, over any span of time.
- At most `most` clients are remembered, however many ask. One whose bucket is full again is
  forgotten: that is the same. When there are more, the one that asked longest ago gets a full
  bucket early; who has that many addresses had as many buckets anyway.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable

from service.errors import RateLimited

MOST = 65_536
NETWORK = 64
"""Bits of an IPv6 address that tell clients apart: whoever has one address has the other 2^64."""


class Rates:
    def __init__(self, rate: float, burst: int, most: int = MOST) -> None:
        """`rate`: requests a second in the long run; `burst`: so many at once."""
        self._seconds = 1 / rate
        self._ahead = (burst - 1) / rate
        self._most = most
        # In the order in which they last asked. A plain dict looks for its first key from where
        # the very first one was.
        self._full_at = OrderedDict[Hashable, float]()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, client: Hashable, now: float) -> None:
        """A request of `client` at `now`. Raises RateLimited."""
        full_at = max(self._full_at.get(client, now), now)
        if (early := full_at - self._ahead - now) > 0:
            raise RateLimited(early)
        self._full_at[client] = full_at + self._seconds
        self._full_at.move_to_end(client)
        for _ in range(2):  # for each that comes two may go, so that it never takes long
            self._forget_first(now)

    def _forget_first(self, now: float) -> None:
        first = next(iter(self._full_at))
        if self._full_at[first] <= now or len(self._full_at) > self._most:
            del self._full_at[first]


def network(address: str) -> str:
    """What tells a client apart from others by its address: all of IPv4, half of IPv6."""
    if ":" not in address:
        return address
    try:
        full = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if full.ipv4_mapped is not None:
        return str(full.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(full), NETWORK), strict=False).network_address)
