"""Records which clients recently sent images that ended decoders or cost more than estimated.

A decoder is a process that decodes images. This module does no I/O and reads no clock.
"""

from __future__ import annotations

from service.rate_limit import Client, RateLimiter

KILLS, KILLS_SECONDS = 5, 60.0
"""Maximum number of decoders that images of a client may end within `KILLS_SECONDS` seconds. If
more decoders end, the client is rejected for a while."""
LIES, DISTRUST_SECONDS = 2, 60.0
"""If `LIES` images of a client take more CPU time than estimated from their headers, all images of
the client count as expensive until `DISTRUST_SECONDS` after the first of these images. One image is
not enough, because measurements of CPU time have errors."""


class Trust:
    """Record of the distrusted clients. Callers pass the current time in seconds."""

    def __init__(self) -> None:
        self._kills = RateLimiter(KILLS / KILLS_SECONDS, KILLS)
        self._lies = RateLimiter(1 / DISTRUST_SECONDS, LIES)

    def killed(self, client: Client, now: float) -> None:
        """Record that an image of `client` ended a decoder."""
        self._kills.owe(client, 1, now)

    def lied(self, client: Client, now: float) -> None:
        """Record that an image of `client` took more CPU time than estimated from its header."""
        self._lies.owe(client, 1, now)

    def wait(self, client: Client, now: float) -> float:
        """Return the number of seconds until images of `client` are accepted. 0: now."""
        return self._kills.wait(client, now)

    def believes(self, client: Client, now: float) -> bool:
        """Whether images of `client` may count as ordinary, according to their headers."""
        return self._lies.wait(client, now) == 0
