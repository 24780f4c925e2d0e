"""Who may wait for a decoder, what a decoder's end means for its image, and who is rejected."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import cast

import pytest

from batching import DeadlineUnreachable
from service.decoding import attempts, fleet, lane
from service.decoding.image import EncodedImage, Pixels
from service.decoding.lane import Job
from service.decoding.launch import Template
from service.decoding.limits import ORDINARY_MEMORY, Limits
from service.decoding.picture import Fault
from service.decoding.pool import Decoders
from service.decoding.process import DecoderEnded, ImageNotReceived
from service.decoding.queue import FairQueue
from service.decoding.trust import DISTRUST_SECONDS, KILLS, LIES
from service.errors import (
    BadImage,
    DecoderLost,
    DecodersDown,
    DecodersKilled,
    ImageTooExpensive,
    ImageTooLarge,
)
from tests.fakes import Clock
from tests.service.decoding.fakes import (
    ANSWER,
    EXPENSIVE,
    ORDINARY,
    FakeTemplate,
    Outcome,
    Process,
    image,
)
from tests.waiting import until

CRASH, KILLED = DecoderEnded(), DecoderEnded("cpu_time")
STALLED, ASLEEP = DecoderEnded("time"), DecoderEnded("sleep")
LIMITS = Limits(ordinary=2, expensive=1, expensive_memory=512 * 2**20, max_seconds=2.0)
ONE_EACH = replace(LIMITS, ordinary=1)
FAILURES = CRASH, ASLEEP, KILLED, (Fault.OUT_OF_MEMORY, b""), (77, b"")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def template() -> FakeTemplate:
    return FakeTemplate()


@pytest.fixture
def kills() -> list[str]:
    return []


class Recording(FairQueue[Job]):
    """A queue that records the CPU time that each client was charged for."""

    def __init__(self) -> None:
        super().__init__(16)
        self.paid = defaultdict[Hashable, float](float)

    def add(self, client: Hashable, seconds: float) -> None:
        self.paid[client] += seconds
        super().add(client, seconds)


@asynccontextmanager
async def running(
    template: FakeTemplate,
    on_kill: Callable[[str], None],
    clock: Clock,
    limits: Limits = LIMITS,
) -> AsyncIterator[Decoders]:
    decoders = Decoders(limits, on_kill, clock, lambda: cast(Template, template))
    async with decoders.running():
        yield decoders


@pytest.fixture
async def decoders(
    template: FakeTemplate, kills: list[str], clock: Clock
) -> AsyncIterator[Decoders]:
    async with running(template, kills.append, clock) as decoders:
        yield decoders


def ask(
    decoders: Decoders, image: EncodedImage, client: bytes = b"client", seconds: float = 10.0
) -> asyncio.Task[Pixels]:
    return asyncio.create_task(decoders.run(image, client, seconds))


def _has(kills: list[str], number: int) -> bool:
    return len(kills) == number


async def test_pool_returns_pixels_and_raises_faults(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """The pixels of an image, or what is wrong with it."""
    assert (await decoders.run(ORDINARY, b"client", 10)).shape == (32, 32, 3)
    for fault, error in (
        (Fault.DAMAGED, BadImage),
        (Fault.TWO_SIZES, BadImage),
        (Fault.TOO_MANY_PARTS, BadImage),
        (Fault.TOO_LARGE, ImageTooLarge),
    ):
        template.outcomes.append((fault, b"cause"))
        with pytest.raises(error):
            await decoders.run(ORDINARY, b"client", 10)


async def test_pool_separates_ordinary_from_expensive(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """Expensive images wait for decoders of their own; ordinary ones are decoded meanwhile."""
    template.goes_on.clear()
    first, second = ask(decoders, EXPENSIVE), ask(decoders, EXPENSIVE)
    await until(lambda: template.begun)
    passing = ask(decoders, ORDINARY)
    await until(lambda: len(template.begun) == 2)
    assert [process.memory for _, process in template.begun] == [
        LIMITS.expensive_memory,
        ORDINARY_MEMORY,
    ]
    template.goes_on.set()
    await asyncio.gather(first, second, passing)


@pytest.mark.parametrize("first", [KILLED, (Fault.OUT_OF_MEMORY, b"")])
async def test_pool_tries_expensive_decoder_after_an_ordinary_one(
    decoders: Decoders, template: FakeTemplate, first: Outcome
) -> None:
    """An image that needs more than its header says is begun again where it may have more."""
    template.outcomes.append(first)
    await decoders.run(ORDINARY, b"client", 10)
    assert [process.memory for _, process in template.begun] == [
        ORDINARY_MEMORY,
        LIMITS.expensive_memory,
    ]


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (CRASH, BadImage),
        (ASLEEP, BadImage),
        (KILLED, ImageTooExpensive),
        ((Fault.OUT_OF_MEMORY, b""), ImageTooExpensive),
        ((77, b""), BadImage),
        ((0, b"too short"), BadImage),
    ],
)
async def test_pool_rejects_what_fails_in_an_expensive_decoder(
    decoders: Decoders, template: FakeTemplate, outcome: Outcome, error: type[Exception]
) -> None:
    """Only that image fails: the next one is decoded."""
    template.outcomes.append(outcome)
    with pytest.raises(error):
        await decoders.run(EXPENSIVE, b"client", 10)
    await decoders.run(EXPENSIVE, b"client", 10)


async def test_pool_distrusts_a_client_whose_image_was_more_expensive_than_its_header(
    decoders: Decoders, template: FakeTemplate, clock: Clock
) -> None:
    """After two such images, all its images count as expensive for a while, also the waiting ones.
    Images of other clients do not."""
    template.outcomes += [KILLED] * LIES
    template.goes_on.clear()
    waiting = [ask(decoders, image(100_000 + k), b"liar") for k in range(4)]
    await until(lambda: len(template.begun) == 2)
    template.goes_on.set()
    await asyncio.gather(*waiting)
    await decoders.run(ORDINARY, b"liar", 10)
    assert {process.memory for _, process in template.begun[2:]} == {LIMITS.expensive_memory}
    await decoders.run(ORDINARY, b"honest", 10)
    assert template.begun[-1][1].memory == ORDINARY_MEMORY
    clock.now += DISTRUST_SECONDS
    await decoders.run(ORDINARY, b"liar", 10)
    assert template.begun[-1][1].memory == ORDINARY_MEMORY


async def test_pool_replaces_a_decoder_that_ended(
    decoders: Decoders, template: FakeTemplate, kills: list[str]
) -> None:
    """Each end is counted by its reason, and there are as many decoders as before."""
    template.outcomes += [KILLED, CRASH]
    with pytest.raises(BadImage):
        await decoders.run(ORDINARY, b"client", 10)
    await until(lambda: len(template.forked) == 5)
    assert kills == ["cpu_time", "crash"]
    assert sum(process.closed for process in template.forked) == 2


async def test_pool_does_not_blame_an_image_for_a_decoder_that_was_gone(
    decoders: Decoders, template: FakeTemplate, kills: list[str]
) -> None:
    """If a decoder has ended before it takes an image, another one decodes the image."""
    await until(lambda: len(template.forked) == 3)
    gone = next(one for one in template.forked if one.memory == LIMITS.expensive_memory)
    gone.is_usable = False
    await decoders.run(EXPENSIVE, b"client", 10)
    assert gone.closed and [process for _, process in template.begun] == [template.forked[-1]]
    await decoders.run(ORDINARY, b"client", 10)
    assert template.begun[-1][1].memory == ORDINARY_MEMORY


@pytest.mark.parametrize("image", [ORDINARY, EXPENSIVE])
async def test_pool_decodes_an_image_again_that_its_decoder_did_not_receive(
    template: FakeTemplate, clock: Clock, kills: list[str], image: EncodedImage
) -> None:
    """A new decoder of the same lane decodes the image. The client of the earlier images of the
    decoder is blamed."""
    async with running(template, kills.append, clock, ONE_EACH) as decoders:
        for number in range(KILLS):
            await decoders.run(image, b"attacker", 10)
            used = template.begun[-1][1]
            template.outcomes.append(ImageNotReceived())
            await decoders.run(image, b"client", 10)
            assert used.closed and template.begun[-1][1].images == 1
            assert template.begun[-1][1].memory == used.memory
            template.outcomes += [CRASH, CRASH]  # the last decoder is replaced by a new one
            with pytest.raises(BadImage):
                await decoders.run(image, b"another %d" % number, 10)
        with pytest.raises(DecodersKilled):
            await decoders.run(image, b"attacker", 10)
        await decoders.run(image, b"client", 10)


async def end_while_idle(decoders: Decoders, template: FakeTemplate, process: Process) -> None:
    """End an idle decoder, and wait until it is replaced."""
    forked = len(template.forked)
    process.is_usable = False
    for lane_ in decoders._lanes:
        lane_.check()
    await until(lambda: len(template.forked) == forked + 1)


@pytest.mark.parametrize(
    ("exit_code", "exits", "killed"),
    [(0, True, False), (-signal.SIGKILL, False, False), (-signal.SIGKILL, True, True)],
    ids=["exits", "closes its socket or sends data", "computes"],
)
async def test_pool_counts_an_idle_decoder_that_ends_against_its_only_client(
    template: FakeTemplate,
    clock: Clock,
    kills: list[str],
    exit_code: int,
    exits: bool,
    killed: bool,
) -> None:
    """One of its images is the cause. Several clients are not blamed, because only one of them is
    the attacker."""
    template.exit_code, template.exits = exit_code, exits
    async with running(template, kills.append, clock, ONE_EACH) as decoders:
        for _ in range(KILLS):
            await decoders.run(ORDINARY, b"one", 10)
            await decoders.run(ORDINARY, b"other", 10)
            template.begun[-1][1].was_killed = killed
            await end_while_idle(decoders, template, template.begun[-1][1])
        for client in b"one", b"other", *[b"attacker"] * KILLS:
            await decoders.run(ORDINARY, client, 10)
            template.begun[-1][1].was_killed = killed
            await end_while_idle(decoders, template, template.begun[-1][1])
        with pytest.raises(DecodersKilled):
            await decoders.run(ORDINARY, b"attacker", 10)
        assert {*kills} == {"crash"}


async def test_pool_charges_the_last_client_of_an_idle_decoder_that_ends(
    template: FakeTemplate, clock: Clock, kills: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the replacement, and for the time in which the decoder did not exit."""
    monkeypatch.setattr(attempts, "REPLACEMENT_SECONDS", 10.0)
    monkeypatch.setattr(lane, "EXIT_SECONDS", 20.0)
    template.exits = False
    async with running(template, kills.append, clock, ONE_EACH) as decoders:
        decoders._ordinary.queue = queue = Recording()
        for client in b"first", b"last":
            await decoders.run(ORDINARY, client, 10)
        await end_while_idle(decoders, template, template.begun[-1][1])
        assert queue.paid[b"first"] == pytest.approx(0, abs=0.1)
        assert queue.paid[b"last"] == pytest.approx(30, abs=0.1)


async def test_pool_blames_no_client_for_an_idle_decoder_that_was_killed(
    template: FakeTemplate, clock: Clock, kills: list[str]
) -> None:
    """An operator or the kernel has killed it. A new decoder had no image that could be the
    cause."""
    template.exit_code = -signal.SIGKILL
    async with running(template, kills.append, clock, ONE_EACH) as decoders:
        for _ in range(KILLS + 1):
            await decoders.run(ORDINARY, b"client", 10)
            await end_while_idle(decoders, template, template.begun[-1][1])
        assert {*kills} == {"lost"}
        template.exit_code = 0
        await end_while_idle(decoders, template, template.forked[-1])
        assert kills[-1] == "crash"
        await decoders.run(ORDINARY, b"client", 10)


async def test_pool_replaces_idle_decoders_that_ended(
    template: FakeTemplate, clock: Clock, kills: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while there are no images."""
    monkeypatch.setattr(fleet, "IDLE_SECONDS", 0.001)
    async with running(template, kills.append, clock):
        await until(lambda: len(template.forked) == 3)
        for process in template.forked[:3]:
            process.is_usable = False
        async with asyncio.timeout(10):
            while len(template.forked) < 6:  # noqa: ASYNC110  # a timer does it
                await asyncio.sleep(0.001)


async def test_pool_rejects_a_client_whose_images_end_decoders(
    decoders: Decoders, template: FakeTemplate, clock: Clock
) -> None:
    """After some, the client is told to wait a while; others and the decoders are not affected."""
    for _ in range(KILLS):
        template.outcomes.append(CRASH)
        with pytest.raises(BadImage):
            await decoders.run(EXPENSIVE, b"killer", 10)
    with pytest.raises(DecodersKilled) as rejected:
        await decoders.run(EXPENSIVE, b"killer", 10)
    await decoders.run(EXPENSIVE, b"other", 10)
    assert 0 < rejected.value.retry_after <= 60
    clock.now += rejected.value.retry_after
    await decoders.run(EXPENSIVE, b"killer", 10)


async def test_pool_keeps_its_other_decoders_when_one_cannot_be_started(
    template: FakeTemplate, clock: Clock, kills: list[str]
) -> None:
    """Images are decoded by those that there are."""
    template.failures = 1
    async with running(template, kills.append, clock) as decoders:
        await decoders.run(image(), b"client", 10)
        await decoders.run(image(), b"client", 10)
    assert len(template.forked) == 2


async def test_pool_keeps_its_other_decoders_when_one_ends_at_its_start(
    template: FakeTemplate, clock: Clock, kills: list[str]
) -> None:
    """A decoder that is not ready is no reason to end those that are."""
    template.unready = 1
    async with running(template, kills.append, clock) as decoders:
        await decoders.run(image(), b"client", 10)
        await decoders.run(image(), b"client", 10)
    assert sum(process.closed for process in template.forked) == len(template.forked) == 3


async def test_pool_fails_an_image_where_the_unexpected_happens(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """Its request ends at once with the error, and the next image is decoded after a new start."""
    template.outcomes.append(RuntimeError("unforeseen"))
    with pytest.raises(RuntimeError, match="unforeseen"):
        await decoders.run(ORDINARY, b"client", 10)
    await decoders.run(ORDINARY, b"client", 10)


async def test_pool_rejects_what_would_be_late(decoders: Decoders, template: FakeTemplate) -> None:
    """An image that would not be decoded in time behind others is rejected at once; where a
    decoder is idle it is tried."""
    template.goes_on.clear()
    tasks = [ask(decoders, EXPENSIVE) for _ in range(4)]
    await until(lambda: template.begun)
    with pytest.raises(DeadlineUnreachable) as rejected:
        await decoders.run(EXPENSIVE, b"client", 0.5)
    assert rejected.value.retry_after > 0
    in_time = ask(decoders, EXPENSIVE)
    template.goes_on.set()
    await asyncio.gather(*tasks, in_time)
    await decoders.run(EXPENSIVE, b"client", 0.001 + 0.2)


async def test_pool_decodes_nothing_for_a_client_that_left(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """Its image leaves the queue."""
    template.goes_on.clear()
    running = ask(decoders, EXPENSIVE)
    await until(lambda: template.begun)
    gone, kept = ask(decoders, image(11_000_000)), ask(decoders, image(12_000_000))
    await until(lambda: decoders.waiting == 2)
    gone.cancel()
    await until(lambda: decoders.waiting == 1)
    template.goes_on.set()
    await asyncio.gather(running, kept)
    assert [image.pixels for image, _ in template.begun] == [10_000_000, 12_000_000]


async def test_pool_begins_nothing_that_cannot_end_in_time(
    decoders: Decoders, template: FakeTemplate, clock: Clock
) -> None:
    """When others took longer than foreseen, an image that waited is rejected, not decoded in
    vain."""
    template.goes_on.clear()
    running = ask(decoders, EXPENSIVE)
    await until(lambda: template.begun)
    late, later = ask(decoders, EXPENSIVE, seconds=2.0), ask(decoders, EXPENSIVE)
    await until(lambda: decoders.waiting == 2)
    clock.now = 1.99
    template.goes_on.set()
    with pytest.raises(DeadlineUnreachable):
        await late
    await asyncio.gather(running, later)


async def test_pool_gives_up_when_the_time_is_up(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """TimeoutError while it is decoded; the decoder serves the next when it is free."""
    template.goes_on.clear()
    with pytest.raises(TimeoutError):
        await decoders.run(ORDINARY, b"client", 0.05)
    template.goes_on.set()
    await decoders.run(ORDINARY, b"client", 10)


async def test_pool_serves_clients_in_turns(decoders: Decoders, template: FakeTemplate) -> None:
    """A client that comes after another with many images waits for one of them, not for all."""
    template.seconds = 0.25
    template.goes_on.clear()
    many = [ask(decoders, image(10_000_000 + k), b"many") for k in range(6)]
    await until(lambda: decoders.waiting == 5)
    one = ask(decoders, image(9_000_000), b"one")
    await until(lambda: decoders.waiting == 6)
    template.goes_on.set()
    await asyncio.gather(one, *many)
    begun = [image.pixels for image, _ in template.begun]
    assert begun.index(9_000_000) <= 2


async def test_pool_does_not_blame_an_image_for_a_decoder_that_was_killed(
    decoders: Decoders, template: FakeTemplate, kills: list[str]
) -> None:
    """The kernel, or an operator, ended it: the image is tried once more, and then its client may
    come back; it is not counted against the client."""
    template.exit_code = -signal.SIGKILL
    template.outcomes.append(CRASH)
    await decoders.run(EXPENSIVE, b"client", 10)
    for _ in range(KILLS + 1):
        template.outcomes += [CRASH, CRASH]
        with pytest.raises(DecoderLost):
            await decoders.run(EXPENSIVE, b"client", 10)
    await decoders.run(EXPENSIVE, b"client", 10)
    assert {*kills} == {"lost"}


async def test_pool_tries_images_of_a_template_that_ended_again(
    template: FakeTemplate, clock: Clock, kills: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All decoders end with it: the images that they had are decoded by the next ones."""
    monkeypatch.setattr(fleet, "RETRY_SECONDS", 0.01)
    template.goes_on.clear()
    async with running(template, kills.append, clock) as decoders:
        held = ask(decoders, ORDINARY)
        await until(lambda: template.begun)
        lost = ask(decoders, EXPENSIVE)
        await until(lambda: len(template.begun) == 2)
        template.failures = 3
        template.ended.set()
        await until(lambda: decoders.is_down)
        assert all(process.closed for process in template.forked)
        template.ended.clear()
        template.goes_on.set()
        await asyncio.gather(held, lost)
        assert kills == []


async def test_pool_gives_an_image_time_by_its_estimate(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """An ordinary image may take four times its estimate, within 20 and 120 ms; an expensive one
    as long as any image may."""
    for pixels in 1, 400_000, 1_900_000, 10_000_000:
        await decoders.run(image(pixels), b"client", 10)
    assert template.limits[0] == 0.02
    assert 0.02 < template.limits[1] < 0.12
    assert template.limits[2:] == [0.12, LIMITS.max_seconds]


async def test_pool_counts_images_that_exhaust_an_expensive_decoder(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """Their header promised less: they count as those that end a decoder."""
    for _ in range(KILLS):
        template.outcomes.append((Fault.OUT_OF_MEMORY, b""))
        with pytest.raises(ImageTooExpensive):
            await decoders.run(EXPENSIVE, b"client", 10)
    with pytest.raises(DecodersKilled):
        await decoders.run(EXPENSIVE, b"client", 10)


async def test_pool_rejects_images_that_waited_while_others_of_their_client_killed(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """The limit holds however many images are under way at the same time."""
    template.outcomes += [CRASH] * 20
    outcomes = await asyncio.gather(
        *(decoders.run(EXPENSIVE, b"killer", 10) for _ in range(20)), return_exceptions=True
    )
    assert [type(each) for each in outcomes].count(BadImage) == KILLS
    assert [type(each) for each in outcomes].count(DecodersKilled) == 20 - KILLS


async def test_pool_is_down_where_no_decoder_can_be_started(
    template: FakeTemplate, clock: Clock, kills: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are rejected at once, until one can."""
    monkeypatch.setattr(fleet, "RETRY_SECONDS", 0.01)
    template.failures = 1_000_000
    async with running(template, kills.append, clock) as decoders:
        await until(lambda: decoders.is_down)
        with pytest.raises(DecodersDown):
            await decoders.run(ORDINARY, b"client", 10)
        template.failures = 0
        await until(lambda: not decoders.is_down)
        await decoders.run(ORDINARY, b"client", 10)


async def test_pool_ends_a_decoder_that_computes_without_an_image(
    template: FakeTemplate, clock: Clock, kills: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been taken over."""
    monkeypatch.setattr(fleet, "IDLE_SECONDS", 0.001)
    async with running(template, kills.append, clock) as decoders:
        await decoders.run(ORDINARY, b"client", 10)
        assert not any(process.was_killed for process in template.forked)
        first = template.forked[:3]
        template.unasked = True
        await until(lambda: all(process.was_killed and process.closed for process in first))


async def test_pool_blames_no_client_for_a_decoder_that_stands_still(
    decoders: Decoders, template: FakeTemplate, kills: list[str]
) -> None:
    """Its decoder is killed after its request has ended. That does not count against the client:
    something else may have stopped the decoder."""
    for number in range(KILLS + 1):
        template.outcomes.append(STALLED)
        unanswered = ask(decoders, EXPENSIVE)
        await until(partial(_has, kills, number + 1))
        unanswered.cancel()
    await decoders.run(EXPENSIVE, b"client", 10)
    assert {*kills} == {"lost"}


async def test_pool_replaces_a_decoder_that_lacked_memory(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """One that was taken over could say so for each image, and have all clients rejected."""
    template.outcomes.append((Fault.OUT_OF_MEMORY, b""))
    await decoders.run(ORDINARY, b"client", 10)
    await until(lambda: len(template.forked) == 4)


async def test_pool_distrusts_a_client_whose_image_took_much_longer_than_estimated(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """Also where it ended within what any image may take."""
    template.seconds = 0.019
    for _ in range(LIES):
        await decoders.run(image(1), b"liar", 10)
        assert template.begun[-1][1].memory == ORDINARY_MEMORY
    await decoders.run(image(1), b"liar", 10)
    assert template.begun[-1][1].memory == LIMITS.expensive_memory


async def test_pool_replaces_a_decoder_on_whose_word_a_client_is_distrusted(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """One that was taken over could use much CPU time for each image, and have all clients
    distrusted. This holds for decoders of both kinds."""
    template.seconds = 1.9
    for liar in image(1), image(3_000_000):
        await decoders.run(liar, b"client", 10)
        await until(lambda: template.begun[-1][1].closed)
    await until(lambda: len(template.forked) == 5)


@pytest.mark.parametrize("outcome", [CRASH, ASLEEP, (77, b"")])
async def test_pool_rejects_what_crashes_a_new_ordinary_decoder(
    template: FakeTemplate, clock: Clock, kills: list[str], outcome: Outcome
) -> None:
    """The image counts against its client, and ends no decoder for expensive images."""
    async with running(template, kills.append, clock, ONE_EACH) as decoders:
        for _ in range(KILLS):
            template.outcomes.append(outcome)
            with pytest.raises(BadImage):
                await decoders.run(ORDINARY, b"client", 10)
        with pytest.raises(DecodersKilled):
            await decoders.run(ORDINARY, b"client", 10)
    assert {process.memory for _, process in template.begun} == {ORDINARY_MEMORY}


@pytest.mark.parametrize("outcome", FAILURES)
@pytest.mark.parametrize("image", [ORDINARY, EXPENSIVE])
async def test_pool_decodes_an_image_again_that_failed_in_a_used_decoder(
    template: FakeTemplate,
    clock: Clock,
    kills: list[str],
    image: EncodedImage,
    outcome: Outcome,
) -> None:
    """A new decoder of the same lane decodes it, after the used decoder has ended. The failure in
    the used decoder does not count."""
    async with running(template, kills.append, clock, ONE_EACH) as decoders:
        for _ in range(KILLS + 1):
            await decoders.run(image, b"other", 10)
            used = template.begun[-1][1]
            template.outcomes.append(outcome)
            await decoders.run(image, b"client", 10)
            assert used.closed
            assert template.begun[-1][1].images == 1
            assert template.begun[-1][1].memory == used.memory
            assert decoders._trust.believes(b"client", clock.now)


@pytest.mark.parametrize("outcome", FAILURES)
async def test_pool_counts_an_image_that_also_fails_in_a_new_decoder(
    decoders: Decoders, template: FakeTemplate, outcome: Outcome
) -> None:
    """It is rejected. After some such images, its client is rejected."""
    for number in range(KILLS):
        await decoders.run(EXPENSIVE, b"other %d" % number, 10)
        template.outcomes += [outcome, outcome]
        with pytest.raises((BadImage, ImageTooExpensive)):
            await decoders.run(EXPENSIVE, b"client", 10)
    with pytest.raises(DecodersKilled):
        await decoders.run(EXPENSIVE, b"client", 10)


async def test_pool_counts_an_image_whose_request_has_ended(
    decoders: Decoders, template: FakeTemplate, kills: list[str]
) -> None:
    """A client that disconnects does not avoid the retry that shows that its image ends
    decoders."""
    for number in range(KILLS):
        await decoders.run(EXPENSIVE, b"other %d" % number, 10)
        template.goes_on.clear()
        attack = ask(decoders, EXPENSIVE)
        await until(lambda: decoders._expensive.is_busy)
        attack.cancel()
        await asyncio.wait({attack})
        template.outcomes += [CRASH, CRASH]
        template.goes_on.set()
        await until(partial(_has, kills, 2 * (number + 1)))
    with pytest.raises(DecodersKilled):
        await decoders.run(EXPENSIVE, b"client", 10)


async def test_pool_has_one_decoder_a_place_while_an_image_is_decoded_again(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """The used decoder has ended before the new one is started: their memory and descriptors are
    bounded."""
    await decoders.run(EXPENSIVE, b"other", 10)
    template.outcomes.append((Fault.OUT_OF_MEMORY, b""))
    await decoders.run(EXPENSIVE, b"client", 10)
    assert template.events[3:6] == ["close", "reap", "fork"]


async def test_pool_tries_an_image_again_where_the_new_decoder_does_not_start(
    decoders: Decoders, template: FakeTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the next one."""
    monkeypatch.setattr(fleet, "RETRY_SECONDS", 0.01)
    await decoders.run(EXPENSIVE, b"other", 10)
    template.outcomes.append((Fault.OUT_OF_MEMORY, b""))
    template.failures = 2
    await decoders.run(EXPENSIVE, b"client", 10)
    assert template.failures == 0


@pytest.mark.parametrize(
    "outcomes",
    [[CRASH] * 2, [ASLEEP] * 2, [KILLED] * 2, [(Fault.OUT_OF_MEMORY, b"")] * 2, [ANSWER]],
)
async def test_pool_charges_a_client_for_what_its_image_did_to_a_decoder(
    decoders: Decoders,
    template: FakeTemplate,
    monkeypatch: pytest.MonkeyPatch,
    outcomes: list[Outcome],
) -> None:
    """For the replacement. Otherwise the client could make others pay: its next image waits until
    they have received as much."""
    monkeypatch.setattr(attempts, "REPLACEMENT_SECONDS", 100.0)
    template.seconds = 1.9 if outcomes == [ANSWER] else 0.001
    cheap, dear = image(3_000_000), image(30_000_000)
    await decoders.run(dear, b"other", 10)
    template.goes_on.clear()
    tasks = [ask(decoders, cheap)]
    await until(lambda: len(template.begun) == 2)
    tasks += [ask(decoders, dear, b"other") for _ in range(4)] + [ask(decoders, cheap)]
    await until(lambda: decoders.waiting == 5)
    template.outcomes += outcomes
    template.goes_on.set()
    await until(lambda: decoders.waiting == 0 and len(template.begun) >= 7)
    assert [image for image, _ in template.begun[-5:]] == [dear] * 4 + [cheap]
    for task in tasks:
        task.cancel()  # one of a decoder that stood still is not answered


async def test_pool_shares_the_cost_of_a_failure_that_may_have_two_causes(
    template: FakeTemplate, clock: Clock, kills: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an image fails in a used decoder only, it or the previous image is the cause. If it also
    fails in a new decoder, its client pays."""
    monkeypatch.setattr(attempts, "REPLACEMENT_SECONDS", 10.0)
    async with running(template, kills.append, clock, ONE_EACH) as decoders:
        decoders._expensive.queue = queue = Recording()
        await decoders.run(EXPENSIVE, b"previous", 10)
        template.outcomes.append(CRASH)
        await decoders.run(EXPENSIVE, b"client", 10)
        await until(lambda: queue.paid[b"client"])
        assert queue.paid[b"client"] == pytest.approx(5, abs=0.1)
        assert queue.paid[b"previous"] == pytest.approx(5, abs=0.1)
        template.outcomes += [CRASH, CRASH]
        with pytest.raises(BadImage):
            await decoders.run(EXPENSIVE, b"bomb", 10)
        await until(lambda: queue.paid[b"bomb"])
        assert queue.paid[b"bomb"] == pytest.approx(20, abs=0.1)
        assert queue.paid[b"client"] == pytest.approx(5, abs=0.1)


async def test_pool_counts_a_decoder_that_lived_on_as_a_crash(
    decoders: Decoders, template: FakeTemplate, kills: list[str]
) -> None:
    """It closed its socket and did not exit. Nothing outside the service ended it."""
    template.exit_code, template.exits = -signal.SIGKILL, False
    for _ in range(KILLS):
        await decoders.run(EXPENSIVE, b"other", 10)
        template.outcomes += [CRASH, CRASH]
        with pytest.raises(BadImage):
            await decoders.run(EXPENSIVE, b"client", 10)
    with pytest.raises(DecodersKilled):
        await decoders.run(EXPENSIVE, b"client", 10)
    assert {*kills} == {"crash"}


async def test_pool_is_not_down_while_one_kind_of_decoder_runs(
    template: FakeTemplate, clock: Clock, kills: list[str]
) -> None:
    """Only images that need the other kind are rejected, also those that turn out to need it."""
    template.no_expensive = True
    async with running(template, kills.append, clock, ONE_EACH) as decoders:
        await decoders.run(ORDINARY, b"client", 10)
        assert not decoders.is_down
        with pytest.raises(DecodersDown):
            await decoders.run(EXPENSIVE, b"client", 10)
        template.outcomes += [(Fault.OUT_OF_MEMORY, b"")] * 2
        with pytest.raises(DecodersDown):
            await decoders.run(ORDINARY, b"client", 10)
        await decoders.run(ORDINARY, b"client", 10)


async def test_pool_is_down_where_the_start_of_decoders_takes_long(
    template: FakeTemplate, clock: Clock, kills: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the template was stopped: images wait at first, and are rejected later until a
    decoder is ready."""
    monkeypatch.setattr(lane, "SLOW_START_SECONDS", 0.01)
    template.starts.clear()
    async with running(template, kills.append, clock) as decoders:
        async with asyncio.timeout(10):
            while not decoders.is_down:  # noqa: ASYNC110  # a timer does it
                await asyncio.sleep(0.001)
        with pytest.raises(DecodersDown):
            await decoders.run(ORDINARY, b"client", 10)
        template.starts.set()
        await until(lambda: not decoders.is_down)
        await decoders.run(ORDINARY, b"client", 10)


async def test_pool_is_down_where_ended_decoders_are_not_reaped(
    decoders: Decoders, template: FakeTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the template was stopped, and an operator killed all decoders."""
    monkeypatch.setattr(lane, "SLOW_START_SECONDS", 0.01)
    await until(lambda: len(template.forked) == 3)
    template.reaps.clear()
    expensive = decoders._expensive
    (process,) = expensive.processes
    cast(Process, process).is_usable = False
    waiting = ask(decoders, EXPENSIVE)
    await until(lambda: expensive.is_down)
    with pytest.raises(DecodersDown):
        await decoders.run(EXPENSIVE, b"client", 10)
    template.reaps.set()
    await waiting
    assert not expensive.is_down


async def test_pool_is_not_down_while_decoders_are_replaced(
    decoders: Decoders, template: FakeTemplate
) -> None:
    """Clients whose images end decoders must not make the service look down."""
    await until(lambda: len(template.forked) == 3)
    for process in template.forked:
        process.is_usable = False
    assert not decoders.is_down


async def test_pool_starts_again_at_once_when_the_template_ends(
    decoders: Decoders, template: FakeTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for an image: all decoders have ended with it."""
    monkeypatch.setattr(fleet, "RETRY_SECONDS", 0.01)
    await until(lambda: len(template.forked) == 3)
    template.ended.set()
    await until(lambda: decoders.is_down)
    template.ended.clear()
    async with asyncio.timeout(10):
        while len(template.forked) < 6:  # noqa: ASYNC110  # the attempts are milliseconds apart
            await asyncio.sleep(0.001)
