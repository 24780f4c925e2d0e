"""Rates: how many images each client may send, where the settings say so. Pure: it is told the
time.

A token bucket for each client, kept as the generic cell rate algorithm does (ITU-T I.371): one
number, the moment at which the bucket will be full again. A request is rejected if that moment is
further ahead than the burst allows. Rejections cost nothing, so that a client that waits as told is
accepted.

A request counts as one image when it begins, before its body is read. The other images are a debt
once they are known, even beyond the burst, and the client is rejected until it is worked off.

Promises
- Over any span of time, a request is accepted only if the images that its client is known to have
  sent before are fewer than `burst` plus `rate` for each second.
- A debt of n images is worked off in `n / rate` seconds. It is at most that of the requests that
  were accepted before their images were known: `burst` of them, and `rate` for each second that an
  upload may take, each with at most the maximum number of images per request.
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
Client = bytes | str
"""What identifies a client: the digest of its API key, or else its network."""
NETWORK = 64
"""Bits of an IPv6 address that tell clients apart: whoever has one address has the other 2^64."""


class RateLimiter:
    def __init__(self, rate: float, burst: int, most: int = MOST) -> None:
        """`rate`: images per second in the long run; `burst`: images at once; `most`: maximum
        number of clients that are remembered."""
        self._seconds = 1 / rate
        self._ahead = (burst - 1) / rate
        self._most = most
        # In the order in which they last asked. A plain dict looks for its first key from where
        # the very first one was.
        self._full_at = OrderedDict[Hashable, float]()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, client: Hashable, now: float) -> None:
        """Count one image, for a request of `client` that begins at `now`. Raises RateLimited."""
        if (seconds := self.wait(client, now)) > 0:
            raise RateLimited(seconds)
        self.owe(client, 1, now)

    def wait(self, client: Hashable, now: float) -> float:
        """Seconds until a request of `client` is accepted; 0 where it would be at `now`."""
        return max(0.0, self._full_at.get(client, now) - self._ahead - now)

    def left(self, client: Hashable, now: float) -> float:
        """Number of images that the client may send at `now` without waiting. Negative: a debt."""
        ahead = max(0.0, self._full_at.get(client, now) - now)
        return 1 + (self._ahead - ahead) / self._seconds

    def give_back(self, client: Hashable, images: float) -> None:
        """Count `images` fewer."""
        if client in self._full_at:
            self._full_at[client] -= images * self._seconds

    def owe(self, client: Hashable, images: float, now: float) -> None:
        """Count `images` more of a request that was accepted, even where they exceed the burst."""
        if images > 0:
            full_at = max(self._full_at.get(client, now), now)
            self._set(client, full_at + images * self._seconds, now)

    def _set(self, client: Hashable, full_at: float, now: float) -> None:
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        for _ in range(2):  # for each that comes two may go, so that it never takes long
            self._forget_first(now)

    def _forget_first(self, now: float) -> None:
        first = next(iter(self._full_at))
        full_at = self._full_at[first]
        if full_at <= now or len(self._full_at) > self._most:
            del self._full_at[first]
        elif full_at - now > self._ahead + self._seconds:
            self._full_at.move_to_end(first)  # a debt, which must not keep the clients behind it


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
