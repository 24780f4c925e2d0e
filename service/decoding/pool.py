"""Decodes images in decoder processes ("decoders"), and rejects images that would be late.

Guarantees
- An image cannot harm the server by exploiting a decoder: the kernel restricts decoders
  (`sandbox`). A decoder that takes too much CPU time is killed. A decoder that ends is replaced
  (`fleet`), and only the request with the decoder's image fails (`attempts`).
- All decoders together take at most `Limits.memory`.
- Waiting clients get equal shares of decode time (`queue`). If images of a client have ended
  several decoders, the client is rejected for a while (`trust`).
- Ordinary images do not wait for expensive images, which have decoders of their own at a lower
  priority. If an ordinary image exceeds its limits, it is decoded again as an expensive image. If
  images of a client repeatedly took too much CPU time, all its images count as expensive for a
  while.
- An image is rejected immediately if it would be decoded too late. The time is predicted from the
  estimated costs of the image and of the waiting images. An image is dropped from the queue when
  its client disconnects or its deadline passes.

The cost of an image is the CPU time of decoding the image. The cost is estimated from the header of
the image (`costs`), and from a measurement at the start of the service.
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
"""Maximum estimated CPU seconds of an ordinary image."""
ORDINARY_LIMIT = 0.12
"""Number of CPU seconds after which an ordinary image is decoded again as an expensive image."""
NICER = 5
"""Niceness of the decoders of expensive images (nice(2)). When all CPUs are busy, such a decoder
gets a third of the CPU time that another process gets."""


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
            limits: Number of decoders, and their limits on memory and CPU time.
            on_kill: Function that is called when a decoder ends unexpectedly. The argument is the
                reason: `cpu_time`, `crash`, or `lost` if something outside the service ended the
                decoder.
            clock: Function that returns the time of a monotonic clock, in seconds.
            template: Function that creates the template, the process that decoders are forked from.
        """
        self.limits = limits
        self.max_memory = limits.max_image_memory
        """Maximum number of bytes of memory that decoding one image may take."""
        self.descriptors = limits.descriptors
        """Maximum number of file descriptors of this process that the decoders need."""
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
        """Whether there is no decoder and none can be started."""
        return all(lane.is_down for lane in self._lanes)

    @property
    def waiting(self) -> int:
        """Number of images that wait for a decoder."""
        return len(self._ordinary.queue) + len(self._expensive.queue)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run decoders within the context. On entry, the context manager does not wait until the
        decoders have started."""
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
            image: Image to decode.
            client: Identifier of the client. Clients get equal shares of decode time.
            max_seconds: Maximum number of seconds from now until the pixels are needed.

        Raises:
            BadImage: The image is damaged, or crashed its decoder.
            ImageTooLarge: The image has more pixels than its header says, and more than are
                allowed.
            ImageTooExpensive: Decoding took more CPU time or memory than one image may take.
            DeadlineUnreachable: The image would be decoded too late. The exception is raised
                immediately, or later if other images took longer than estimated.
            TimeoutError: `max_seconds` have passed.
            DecodeQueueFull: Too many images wait, or an image of another client replaced this image
                in the queue.
            DecodersKilled: Images of this client have ended too many decoders.
            DecoderLost: Something outside the service ended the decoder that decoded the image for
                the second time.
            DecodersDown: No decoder for this image can be started.
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
            del answer, job  # breaks a reference cycle: exception -> traceback -> future

    def _pixel_limits(self) -> dict[str, object]:
        """Return the maximum megapixels of each kind of image, for the log."""
        megapixels = {kind: self.limits.most_pixels(kind) / 1e6 for kind in BYTES_PER_PIXEL}
        return {"max_megapixels": {kind: round(each, 1) for kind, each in megapixels.items()}}
