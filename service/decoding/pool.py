"""Decoders: accepts images for decoder processes, and rejects those that cannot be decoded in time.

Promises
- What an image does to its decoder does not affect the server: decoders are processes that the
  kernel restricts (`sandbox`). A decoder that takes too much CPU time is killed, one that ends is
  replaced (`fleet`), and only the request with that image fails (`attempts`).
- All decoders together take at most `Limits.memory`.
- Clients get equal shares of decode time when several of them wait (`queue`), and a client whose
  images have ended several decoders is rejected for a while (`trust`).
- Expensive images have decoders of their own, at a lower priority, so ordinary images do not wait
  for them. An image that turns out to be more expensive than its header says is begun again there.
  If it took too much CPU time, all images of its client are decoded there for a minute.
- An image is rejected at once if it would not be decoded in time, by the estimates of its cost and
  of the images that wait. Images whose client has disconnected or whose time is up are not begun.

The cost of an image is estimated from its header (`costs`) and from measurements at the start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from batching import DeadlineUnreachable
from service.decoding.attempts import Attempts
from service.decoding.fleet import Fleet
from service.decoding.image import BYTES_PER_PIXEL, EncodedImage, Pixels
from service.decoding.lane import Job, Lane
from service.decoding.launch import Template
from service.decoding.limits import ORDINARY_IMAGE_MEMORY, ORDINARY_MEMORY, Limits
from service.decoding.trust import Trust
from service.errors import DecodersDown, DecodersKilled
from service.rate_limit import Client
from service.telemetry.logs import log

ORDINARY_SECONDS = 0.05
"""CPU seconds up to which an image is ordinary, by its estimate."""
ORDINARY_LIMIT = 0.12
"""CPU seconds after which an ordinary image is begun again as an expensive one."""
NICER = 5
"""Niceness of the decoders of expensive images (nice(2)): a third of the weight of others."""


class Decoders:
    """The decoder processes of this service."""

    def __init__(
        self,
        limits: Limits,
        on_kill: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        template: Callable[[], Template] = Template,
    ) -> None:
        """
        Args:
            limits: Number of decoders, and what they may take.
            on_kill: Called with the reason when a decoder ends before its time: `cpu_time`,
                `crash`, or `lost`, where something else did.
            clock: Monotonic time in seconds.
            template: Creates the template that decoders are forked from.
        """
        self.limits = limits
        self.max_memory = limits.max_image_memory
        """Maximum number of bytes that decoding one image may take."""
        self.descriptors = limits.descriptors
        """File descriptors of this process that the decoders may take."""
        self._clock = clock
        self._trust = Trust()
        self._ordinary = Lane(limits.ordinary, ORDINARY_MEMORY, ORDINARY_LIMIT)
        self._expensive = Lane(
            limits.expensive, limits.expensive_memory, limits.max_seconds, limits.max_seconds, NICER
        )
        self._lanes = self._ordinary, self._expensive
        attempts = Attempts(*self._lanes, self._trust, on_kill, clock)
        self._fleet = Fleet(self._lanes, attempts.decode_next, template)

    @property
    def is_down(self) -> bool:
        """Whether there is no decoder at all, and none can be started."""
        cannot_start = any(lane.cannot_start for lane in self._lanes)
        return cannot_start and not any(lane.has_decoder for lane in self._lanes)

    @property
    def waiting(self) -> int:
        """Images that wait for a decoder."""
        return len(self._ordinary.queue) + len(self._expensive.queue)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Decoders run within this context. Does not wait until they have started."""
        log.info("%s", self.limits, extra={"fields": self._pixel_limits()})
        task = asyncio.create_task(self._fleet.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def run(self, image: EncodedImage, client: Client, max_seconds: float) -> Pixels:
        """Decode `image`.

        Args:
            image: The image.
            client: Identifies the client, which shares decode time with others.
            max_seconds: Seconds from now within which the pixels are needed.

        Raises:
            BadImage: The image is damaged, or crashed its decoder.
            ImageTooLarge: The image has more pixels than its header says, and than are allowed.
            ImageTooExpensive: Decoding took more CPU time or memory than one image may take.
            DeadlineUnreachable: The image would be late: raised at once, or later if other images
                took longer than estimated.
            TimeoutError: `max_seconds` have passed.
            DecodeQueueFull: Too many images wait, or this one made room for another client's.
            DecodersKilled: Images of this client have ended too many decoders.
            DecoderLost: Its decoder was ended from outside, more than once.
            DecodersDown: No decoder for such an image can be started.
        """
        now = self._clock()
        if (wait := self._trust.wait(client, now)) > 0:
            raise DecodersKilled(wait)
        seconds = self._fleet.costs.estimate(image)
        answer: asyncio.Future[Pixels] = asyncio.get_running_loop().create_future()
        job = Job(image, client, seconds, now + max_seconds, answer)
        expensive = seconds > ORDINARY_SECONDS or image.memory > ORDINARY_IMAGE_MEMORY
        believed = not expensive and self._trust.believes(client, now)
        lane = self._ordinary if believed else self._expensive
        if lane.is_down:
            raise DecodersDown
        late = lane.seconds_until_done(job) - max_seconds
        if late > 0 and lane.is_busy:
            raise DeadlineUnreachable(f"decoding would end {late:.3g} s late", late)
        lane.put(job)
        try:
            async with asyncio.timeout(max_seconds):
                return await answer
        finally:
            for lane in self._lanes:
                lane.queue.discard(job)
            del answer, job  # an exception would refer to itself by this frame in its traceback

    def _pixel_limits(self) -> dict[str, object]:
        """Maximum megapixels of an image by the memory that it takes, for the log."""
        megapixels = {kind: self.limits.most_pixels(kind) / 1e6 for kind in BYTES_PER_PIXEL}
        return {"max_megapixels": {kind: round(each, 1) for kind, each in megapixels.items()}}
