"""Limits the calls that relays have passed on to gRPC's server and whose handlers have not begun.

gRPC's server starts handlers one after the other, in about 0.3 ms each. Until then, it queues the
calls, also those of closed connections. It cancels any client's calls if its queue is too long. So
relays pass on at most `CALLS` calls at the same time. Further calls wait in the relays, where the
end of the connection removes them.

A client network is an IPv4 address or an IPv6 network. Each network may have up to a quarter as
many calls as there are free places. So the networks with the most calls wait first, and a few
networks never take all places.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable

CALLS = 128
"""Maximum number of calls that were relayed and have not begun."""
FREE_PER_CALL = 4
"""Number of free places per call of a network that allow the network another call."""
CLOSED_SECONDS = 1.0
"""Number of seconds after which a call of a closed stream is no longer counted. gRPC's server may
have received such a call too late, and never starts a handler for it."""


class StartLimit:
    """Counts the calls that have not begun, and queues relays whose calls must wait."""

    def __init__(self) -> None:
        self._calls: dict[str, str] = {}
        """Maps the name of each counted call to the network of its client."""
        self._counts = Counter[str]()
        """Number of counted calls of each network."""
        self._waiting = OrderedDict[str, OrderedDict[Callable[[], None], None]]()
        """The waiting relays of each network. The network that waits the longest comes first."""
        self._wakes = False

    def allows(self, network: str) -> bool:
        """Whether a relay may pass on another call of the network."""
        return self._counts[network] * FREE_PER_CALL < CALLS - len(self._calls)

    def add(self, name: str, network: str) -> None:
        """Count a call that is relayed. `name`: the name of its stream."""
        self._calls[name] = network
        self._counts[network] += 1

    def remove(self, name: str) -> None:
        """Count a call no longer, because its handler has begun or gRPC's server has rejected it.

        No effect if the call is not counted.
        """
        network = self._calls.pop(name, None)
        if network is None:
            return
        self._counts[network] -= 1
        if not self._counts[network]:
            del self._counts[network]
        if self._waiting and not self._wakes:
            self._wakes = True
            asyncio.get_running_loop().call_soon(self._wake)

    def close(self, name: str) -> None:
        """Record that the client has closed the stream of a call. The call is still counted until
        its handler begins, but at most for `CLOSED_SECONDS`."""
        if name in self._calls:
            asyncio.get_running_loop().call_later(CLOSED_SECONDS, self.remove, name)

    def wait(self, network: str, resume: Callable[[], None]) -> None:
        """Queue a relay of the network. To continue the relay, `resume` is called once."""
        self._waiting.setdefault(network, OrderedDict())[resume] = None

    def stop_waiting(self, network: str, resume: Callable[[], None]) -> None:
        """Remove a relay from the queue. No effect if the relay is not in the queue."""
        relays = self._waiting.get(network, OrderedDict())
        relays.pop(resume, None)
        if not relays:
            self._waiting.pop(network, None)

    def _wake(self) -> None:
        """Continue the relays of each network that may pass on calls."""
        self._wakes = False
        for network in list(self._waiting):
            while network in self._waiting and self.allows(network):
                resume = next(iter(self._waiting[network]))
                self.stop_waiting(network, resume)
                resume()
                if network in self._waiting:
                    self._waiting.move_to_end(network)
