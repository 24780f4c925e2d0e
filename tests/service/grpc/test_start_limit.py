"""Tests the limit of calls that have not begun."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

from service.grpc.start_limit import CALLS, CLOSED_SECONDS, FREE_PER_CALL, StartLimit
from tests.batching.virtual_time import virtual_time


class Relays:
    """Relays that pass on calls of their networks as soon as the limit allows it."""

    def __init__(self) -> None:
        self.limit = StartLimit()
        self.relayed = list[str]()
        """The names of the calls that were relayed: NETWORK-NUMBER."""
        self._left = Counter[str]()

    def send(self, network: str, count: int) -> None:
        """`count` calls arrive on one connection."""
        self._left[network] += count
        self._relay(network)

    def relayed_of(self, network: str) -> int:
        return sum(name.startswith(f"{network}-") for name in self.relayed)

    def _relay(self, network: str) -> None:
        while self._left[network] and self.limit.allows(network):
            self._left[network] -= 1
            name = f"{network}-{self._left[network]}"
            self.limit.add(name, network)
            self.relayed.append(name)
        if self._left[network]:
            self.limit.wait(network, partial(self._relay, network))


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_network_has_at_most_a_share_of_the_free_places() -> None:
    """So other networks find a free place, and all together have at most `CALLS` calls."""
    relays = Relays()
    relays.send("first", 1000)
    alone = relays.relayed_of("first")
    assert alone == -(-CALLS // (FREE_PER_CALL + 1))
    relays.send("second", 1000)
    assert relays.relayed_of("second") == -(-(CALLS - alone) // (FREE_PER_CALL + 1))
    for number in range(CALLS):
        relays.send(f"network{number}", 1000)
    assert len(relays.relayed) == CALLS
    assert not relays.limit.allows("another")


async def test_calls_wait_until_others_have_begun() -> None:
    """Each call that begins makes room for another, until all calls have begun."""
    relays = Relays()
    relays.send("only", 1000)
    begun = 0
    while begun < 1000:
        assert len(relays.relayed) == min(1000, begun + -(-CALLS // (FREE_PER_CALL + 1)))
        relays.limit.remove(relays.relayed[begun])
        relays.limit.remove(relays.relayed[begun])  # no effect
        begun += 1
        await turns()
    assert len(relays.relayed) == 1000


async def test_network_with_few_calls_does_not_wait_for_a_few_others() -> None:
    """While ten networks wait, each call of another network is relayed immediately."""
    relays = Relays()
    for number in range(10):
        relays.send(f"flood{number}", 10_000)
    flood = list(relays.relayed)
    for number in range(1, 51):
        relays.send("honest", 1)
        assert relays.relayed_of("honest") == number
        relays.limit.remove(relays.relayed[-1])
        relays.limit.remove(flood[number])
        await turns()


async def test_waiting_networks_take_turns() -> None:
    """If all places are taken, each place that becomes free is for the network without a call that
    has waited the longest."""
    relays = Relays()
    for number in [*range(CALLS), *range(CALLS)]:  # two relays of each network
        relays.send(f"network{number}", 5)
    waiting = [f"network{n}" for n in range(CALLS) if not relays.relayed_of(f"network{n}")]
    assert len(waiting) > CALLS // 2
    last = relays.relayed[-1].partition("-")[0]
    for network in [last, *waiting, last]:
        relays.limit.remove(relays.relayed[-1])
        await turns()
        assert relays.relayed[-1].startswith(f"{network}-")


async def test_relay_that_ends_no_longer_waits() -> None:
    """The calls of a relay that has ended are not relayed, and another relay continues."""
    limit, resumed = StartLimit(), list[str]()
    for number in range(CALLS):
        limit.add(str(number), f"network{number}")
    ended, other = (partial(resumed.append, name) for name in ("ended", "other"))
    for resume in ended, other:
        limit.wait("network", resume)
    limit.stop_waiting("network", ended)
    limit.stop_waiting("network", ended)  # no effect
    limit.remove("0")
    await turns()
    assert resumed == ["other"]
    limit.wait("alone", ended)
    limit.stop_waiting("alone", ended)
    limit.remove("1")
    await turns()
    assert resumed == ["other"]


@virtual_time
async def test_calls_of_closed_streams_count_for_a_limited_time() -> None:
    """The handler of such a call may never begin. An open call counts until it begins."""
    limit = StartLimit()
    for number in range(CALLS):
        limit.add(str(number), f"network{number}")
    limit.close("7")
    limit.close("unknown")
    await asyncio.sleep(CLOSED_SECONDS / 2)
    assert not limit.allows("another")
    await asyncio.sleep(CLOSED_SECONDS)
    assert limit.allows("another")
    limit.add("another", "another")
    await asyncio.sleep(100 * CLOSED_SECONDS)
    assert not limit.allows("one more")
