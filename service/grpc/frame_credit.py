"""Limits the frames of gRPC clients that cost work but carry no message.

Such frames are PING, SETTINGS, RST_STREAM, empty DATA and others. Each client network may send
`FRAMES_PER_SECOND`, after a burst of `FRAMES_AT_ONCE`. All its connections share this credit, so
connecting again gives no further burst. The response to a call with a message gives new credit.
"""

from __future__ import annotations

from service.rate_limit import RateLimiter, network

FRAMES_PER_SECOND = 200.0
FRAMES_AT_ONCE = 1000
FRAMES_PER_RESPONSE = 9.0
"""Maximum credit for one response. It covers the headers, acknowledgments, window updates and pings
of a call."""
USEFUL_BYTES = 256
"""Bytes of a message that give credit for one frame. DATA frames with fewer bytes count as frames
without a message, unless they end one."""
RESET_COST = 4.0
"""Number of frames that one RST_STREAM counts as, since work for its stream is lost."""


def new_limiter() -> RateLimiter:
    """The limiter that all connections share."""
    return RateLimiter(FRAMES_PER_SECOND, FRAMES_AT_ONCE)


class FrameCredit:
    """The credit of one connection's client network, in frames."""

    def __init__(self, limiter: RateLimiter, client: str) -> None:
        """
        Args:
            limiter: Shared by all connections; from `new_limiter`.
            client: Address of the client.
        """
        self._limiter = limiter
        self._network = network(client)

    def available(self, now: float) -> float:
        """Number of frames that may be sent at `now`. Not positive: none."""
        return self._limiter.left(self._network, now)

    def spend(self, frames: float, now: float) -> None:
        """Count `frames` that were relayed at `now`."""
        self._limiter.owe(self._network, frames, now)

    def add_for_response(self, message_bytes: int) -> None:
        """Give credit for the response to a message of `message_bytes`."""
        frames = min(FRAMES_PER_RESPONSE, message_bytes // USEFUL_BYTES)
        self._limiter.give_back(self._network, frames)
