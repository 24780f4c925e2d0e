"""Limits the frames of gRPC clients that cost work but carry no message.

Such frames are PING, SETTINGS, RST_STREAM, empty DATA and others. Each client network may send
`FRAMES_PER_SECOND`, after a burst of `FRAMES_AT_ONCE`. All its connections share this credit, so
connecting again gives no further burst. The response to a call gives new credit if a handler has
read its message.

Relays without credit wait in one queue for each network. Every `RETRY_SECONDS` as many of them
continue as the network may send frames by then, the longest waiting first.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable

from service.rate_limit import RateLimiter, network

FRAMES_PER_SECOND = 200.0
FRAMES_AT_ONCE = 1000
FRAMES_PER_RESPONSE = 9.0
"""Maximum credit for the response to a message that a handler has read. It covers the headers,
acknowledgments, window updates and pings of a call."""
USEFUL_BYTES = 256
"""Bytes of a message that give credit for one frame. DATA frames with fewer bytes count as frames
without a message, unless they end one. So do those behind the end of a message. Control frames,
unknown frames and CONTINUATION count as one more frame for every `USEFUL_BYTES` of payload."""
RESET_COST = 4.0
"""Number of frames that one RST_STREAM counts as, since work for its stream is lost."""


RETRY_SECONDS = 0.1
"""Time until the first relays of a queue continue."""


class FrameLimiter:
    """The credit of all client networks, and the relays that wait for it."""

    def __init__(self) -> None:
        self.credit = RateLimiter(FRAMES_PER_SECOND, FRAMES_AT_ONCE)
        self._waiting: dict[str, OrderedDict[Callable[[], None], None]] = {}

    def wait(self, client_network: str, resume: Callable[[], None]) -> None:
        """Call `resume` once when the network has credit and its relays before have continued."""
        queue = self._waiting.get(client_network)
        if queue is None:
            queue = self._waiting[client_network] = OrderedDict()
            self._wake_later(client_network)
        queue[resume] = None

    def stop_waiting(self, client_network: str, resume: Callable[[], None]) -> None:
        """Do not call `resume`. No effect if it does not wait."""
        self._waiting.get(client_network, OrderedDict()).pop(resume, None)

    def _wake_later(self, client_network: str) -> None:
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self._wake, client_network)

    def _wake(self, client_network: str) -> None:
        queue, now = self._waiting[client_network], asyncio.get_running_loop().time()
        for _ in range(math.ceil(self.credit.left(client_network, now))):
            if not queue or self.credit.left(client_network, now) <= 0:
                break
            resume, _ = queue.popitem(last=False)
            resume()
        if queue:
            self._wake_later(client_network)
        else:
            del self._waiting[client_network]


class FrameCredit:
    """The credit of one connection's client network, in frames."""

    def __init__(self, limiter: FrameLimiter, client: str) -> None:
        """
        Args:
            limiter: Shared by all connections.
            client: Address of the client.
        """
        self._limiter = limiter
        self._network = network(client)

    def available(self, now: float) -> float:
        """Number of frames that may be sent at `now`. Not positive: none."""
        return self._limiter.credit.left(self._network, now)

    def spend(self, frames: float, now: float) -> None:
        """Count `frames` that were relayed at `now`."""
        self._limiter.credit.owe(self._network, frames, now)

    def add_for_response(self, message_bytes: int) -> None:
        """Give credit for the response to a message of `message_bytes` that a handler has read."""
        frames = min(FRAMES_PER_RESPONSE, message_bytes // USEFUL_BYTES)
        self._limiter.credit.give_back(self._network, frames)

    def wait(self, resume: Callable[[], None]) -> None:
        """Call `resume` once when the relay may continue."""
        self._limiter.wait(self._network, resume)

    def stop_waiting(self, resume: Callable[[], None]) -> None:
        """Do not call `resume`. No effect if it does not wait."""
        self._limiter.stop_waiting(self._network, resume)
