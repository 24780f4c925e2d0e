"""Limits the rate at which gRPC clients may send frames without message data.

Such frames, for example PING, SETTINGS, RST_STREAM and empty DATA, cause work for the server. A
client network is an IPv4 address or an IPv6 network. Each network may send `FRAMES_PER_SECOND` of
these frames, and `FRAMES_AT_ONCE` in a burst. The number of frames that a network may still send is
its credit. All connections of a network share the credit, so a client gets no additional credit
from a new connection. A response adds credit if a handler has read the message of the call.

A relay passes on the frames of one connection. If the client's network has no credit, the relay
waits in a queue of this network. Every `RETRY_SECONDS`, as many waiting relays continue as the
network has credit. The relays that have waited the longest continue first.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable

from service.rate_limit import RateLimiter, network

FRAMES_PER_SECOND = 200.0
"""Number of frames that are added to the credit of a network per second."""
FRAMES_AT_ONCE = 1000
"""Maximum credit of a network, in frames."""
FRAMES_PER_RESPONSE = 9.0
"""Maximum credit that one response adds, in frames. A usual call has at most this number of frames
besides its message: headers, acknowledgments, window updates and pings."""
USEFUL_BYTES = 256
"""Number of bytes of a message that add credit for one frame. A DATA frame uses up credit if it has
fewer bytes and is not the last frame of a message, or if it follows the end of the message. A frame
of another type uses up credit for one frame, plus one for every `USEFUL_BYTES` of payload. In a
HEADERS frame, only bytes beyond `frame_filter.CHEAP_HEAD_BYTES` count."""
RESET_COST = 4.0
"""Credit that one RST_STREAM uses up, in frames. The value is more than 1, because the work for the
reset stream was wasted."""


RETRY_SECONDS = 0.1
"""Interval at which waiting relays continue, in seconds."""


class FrameLimiter:
    """Keeps the credit of all client networks, and the queues of waiting relays."""

    def __init__(self) -> None:
        self.credit = RateLimiter(FRAMES_PER_SECOND, FRAMES_AT_ONCE)
        """The credit of each client network."""
        self._waiting: dict[str, OrderedDict[Callable[[], None], None]] = {}

    def wait(self, client_network: str, resume: Callable[[], None]) -> None:
        """Queue a relay of the network. To continue the relay, `resume` is called once."""
        queue = self._waiting.get(client_network)
        if queue is None:
            queue = self._waiting[client_network] = OrderedDict()
            self._wake_later(client_network)
        queue[resume] = None

    def stop_waiting(self, client_network: str, resume: Callable[[], None]) -> None:
        """Remove a relay from the queue of its network. No effect if the relay is not in the
        queue."""
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
    """The credit of the client network of one connection, in frames."""

    def __init__(self, limiter: FrameLimiter, client: str) -> None:
        """
        Args:
            limiter: The credit of all client networks, which all connections share.
            client: Address of the client.
        """
        self._limiter = limiter
        self._network = network(client)

    def available(self, now: float) -> float:
        """Return the credit at `now` (seconds of the event loop's clock), which may be negative."""
        return self._limiter.credit.left(self._network, now)

    def spend(self, frames: float, now: float) -> None:
        """Subtract `frames` from the credit at `now` (seconds of the event loop's clock)."""
        self._limiter.credit.owe(self._network, frames, now)

    def add_for_response(self, message_bytes: int) -> None:
        """Add credit for a response. The message of its call has `message_bytes` bytes."""
        frames = min(FRAMES_PER_RESPONSE, message_bytes // USEFUL_BYTES)
        self._limiter.credit.give_back(self._network, frames)

    def wait(self, resume: Callable[[], None]) -> None:
        """Wait in the queue of the network. `resume` is called once, to continue the relay."""
        self._limiter.wait(self._network, resume)

    def stop_waiting(self, resume: Callable[[], None]) -> None:
        """Stop waiting. No effect if the relay does not wait."""
        self._limiter.stop_waiting(self._network, resume)
