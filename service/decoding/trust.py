"""Trust: clients whose images ended decoders, or took more than their headers say, lately. Pure."""

from __future__ import annotations

from service.rate_limit import Client, RateLimiter

KILLS, KILLS_SECONDS = 5, 60.0
"""Number of decoders that the images of one client may end at once, and the seconds after which
they are forgotten."""
DISTRUST_SECONDS = 60.0
"""For which all images of a client count as expensive after one was so despite its header."""


class Trust:
    """Of all clients. Each method is told the time in seconds."""

    def __init__(self) -> None:
        self._kills = RateLimiter(KILLS / KILLS_SECONDS, KILLS)
        self._lies = RateLimiter(1 / DISTRUST_SECONDS, 1)

    def killed(self, client: Client, now: float) -> None:
        """An image of `client` ended a decoder, though it might take what an expensive one may."""
        self._kills.owe(client, 1, now)

    def lied(self, client: Client, now: float) -> None:
        """An image of `client` took more than its header says."""
        self._lies.owe(client, 1, now)

    def wait(self, client: Client, now: float) -> float:
        """Seconds until images of `client` are accepted again; 0: now."""
        return self._kills.wait(client, now)

    def believes(self, client: Client, now: float) -> bool:
        """Whether headers of `client` are believed."""
        return self._lies.wait(client, now) == 0
