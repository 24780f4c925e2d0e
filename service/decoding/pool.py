"""Decoders: assigns images to decoder processes, and rejects those that cannot be decoded in time.

Promises
- What an image does to its decoder does not affect the server: decoders are processes that the
  kernel restricts (`sandbox`). A decoder that takes too much CPU time is killed, one that ends is
  replaced, and only the request with that image fails.
- All decoders together take at most `Limits.memory`.
- Clients get equal shares of decode time when several of them wait (`queue`), and a client whose
  images have ended several decoders is rejected for a while (`trust`).
- Expensive images have decoders of their own, at a lower priority, so ordinary images do not wait
  for them. An image that turns out to be more expensive than its header says is begun again there,
  and for a minute all images of its client are decoded there.
- An image is rejected at once if it would not be decoded in time, by the estimates of its cost and
  of the images that wait. Images whose client has disconnected or whose time is up are not begun.

The cost of an image is estimated from its header (`costs`) and from measurements at the start.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from batching import DeadlineUnreachable, on_error, reject
from service.decoding.costs import Costs
from service.decoding.image import BYTES_PER_PIXEL, EncodedImage, Pixels, as_pixels
from service.decoding.lane import MAX_UNDERESTIMATE, Job, Lane
from service.decoding.launch import Template
from service.decoding.limits import ORDINARY_MEMORY, Limits
from service.decoding.picture import CHANNELS, SIDE, Fault
from service.decoding.process import DecoderEnded, DecoderGone, DecoderProcess, StartFailed
from service.decoding.trust import Trust
from service.errors import DecoderLost, DecodersDown, DecodersKilled
from service.rate_limit import Client
from service.telemetry.logs import log

ORDINARY_SECONDS = 0.05
"""CPU seconds up to which an image is ordinary, by its estimate."""
ORDINARY_LIMIT = 0.12
"""CPU seconds after which an ordinary image is begun again as an expensive one."""
ORDINARY_IMAGE_MEMORY = ORDINARY_MEMORY * 2 // 3
"""Bytes up to which an image is ordinary."""
NICER = 5
"""Niceness of the decoders of expensive images (nice(2)): a third of the weight of others."""
LEAST_LIE = 0.005
"""CPU seconds that an image must take beyond a multiple of its estimate to make it a wrong one."""
MAX_LOSSES = 1
"""How many decoders of an image may be ended from outside before it fails."""
IDLE_SECONDS = 2.0
"""Idle time after which a decoder returns its freed memory to the system."""
LEAST_WORK = 0.25
"""CPU seconds below which a decoder that did not end in time is taken to have done nothing."""
STALL_SECONDS = 5.0
"""Seconds that a decoder may go on with an image whose time is up."""
RETRY_SECONDS = 1.0
"""Between two attempts to start a decoder where the system does not allow it."""


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
        self.max_memory = limits.expensive_memory
        """Maximum number of bytes that decoding one image may take."""
        self._on_kill = on_kill
        self._clock = clock
        self._new_template = template
        self._trust = Trust()
        self._costs = Costs()
        self._ordinary = Lane(limits.ordinary, ORDINARY_MEMORY, ORDINARY_LIMIT)
        self._expensive = Lane(
            limits.expensive, limits.expensive_memory, limits.max_seconds, limits.max_seconds, NICER
        )
        self._lanes = self._ordinary, self._expensive
        self._told: list[list[str]] = []
        self.is_down = False
        """Whether decoders cannot be started."""

    @property
    def waiting(self) -> int:
        """Images that wait for a decoder."""
        return len(self._ordinary.queue) + len(self._expensive.queue)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Decoders run within this context. Does not wait until they have started."""
        log.info("%s", self.limits, extra={"fields": self._pixel_limits()})
        task = asyncio.create_task(self._run())
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
            DecodersDown: No decoder can be started.
        """
        now = self._clock()
        if self.is_down:
            raise DecodersDown
        if (wait := self._trust.wait(client, now)) > 0:
            raise DecodersKilled(wait)
        seconds = self._costs.estimate(image)
        answer: asyncio.Future[Pixels] = asyncio.get_running_loop().create_future()
        job = Job(image, client, seconds, now + max_seconds, answer)
        lane = self._ordinary
        expensive = seconds > ORDINARY_SECONDS or image.memory > ORDINARY_IMAGE_MEMORY
        if expensive or not self._trust.believes(client, now):
            lane = self._expensive
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

    async def _run(self) -> None:
        """Run decoders until canceled."""
        while True:
            try:
                await self._run_template()
            except Exception as error:  # noqa: BLE001  # images need decoders
                self.is_down = True
                log.error("%s; starting them again in %g s", _first(error), RETRY_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)

    async def _run_template(self) -> None:
        """Run decoders until their template ends.

        Raises StartFailed, or an ExceptionGroup of what ended a decoder's task.
        """
        template = self._new_template()
        try:
            await template.start()
            self._costs = Costs(template.sample_seconds)
            async with asyncio.TaskGroup() as group:
                for lane in self._lanes:
                    for _ in range(lane.decoders):
                        group.create_task(self._keep(template, lane))
                group.create_task(self._free_idle())
        finally:
            template.close()

    async def _keep(self, template: Template, lane: Lane) -> None:
        """Run a decoder of `lane`, and replace it when it ends. Raises StartFailed when the
        template has ended."""
        while True:
            try:
                async with self._decoder(template, lane) as process:
                    while await self._decode_next(template, process, lane):
                        pass
                await template.reap(process)
            except StartFailed as error:
                if template.has_ended:
                    raise
                self.is_down = not lane.processes
                log.error("%s; trying again in %g s", error, RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)

    @asynccontextmanager
    async def _decoder(self, template: Template, lane: Lane) -> AsyncIterator[DecoderProcess]:
        """A decoder that is ready. Raises StartFailed."""
        process = await template.fork(lane.memory, lane.nicer)
        try:
            await process.ready()
            self._tell_restrictions(process)
            self.is_down = False
            lane.processes.add(process)
            yield process
        finally:
            lane.processes.discard(process)
            process.close()

    async def _decode_next(self, template: Template, process: DecoderProcess, lane: Lane) -> bool:
        """Let `process` decode the next image. Returns whether it can decode another."""
        job = await lane.take()
        process.image_seconds = 0.0
        goes_on = canceled = False
        try:
            with on_error(reject, job.answer):
                try:
                    goes_on = await self._decode(job, template, process, lane)
                except asyncio.CancelledError:  # the template has ended, and all decoders with it
                    canceled = True
                    self._try_again(job, lane)
        finally:
            lane.queue.charge(job.client, process.image_seconds)
        if canceled:
            raise asyncio.CancelledError
        return goes_on

    async def _decode(
        self, job: Job, template: Template, process: DecoderProcess, lane: Lane
    ) -> bool:
        """Let `process` decode the image of `job`. Returns whether it can decode another."""
        if not self._is_worth_it(job):
            return True
        if lane is self._ordinary and not self._trust.believes(job.client, self._clock()):
            self._move_to_expensive(job)
            return True
        try:
            patience = job.deadline - self._clock() + STALL_SECONDS
            answer = await process.decode(job.image, lane.max_cpu_seconds(job), patience)
        except DecoderGone:  # before it saw the image
            lane.put(job)
            return False
        except DecoderEnded as end:
            await self._ended(job, template, process, lane, end)
            return False
        return self._answer(job, lane, *answer, process.image_seconds)

    def _is_worth_it(self, job: Job) -> bool:
        """Whether `job` can still be answered; if it is too late or not allowed, it fails."""
        now = self._clock()
        late = now + job.seconds - job.deadline
        if late > 0 and self.waiting:
            _fail(job, DeadlineUnreachable("images took longer to decode than foreseen", late))
        if (wait := self._trust.wait(job.client, now)) > 0:
            _fail(job, DecodersKilled(wait))
        return not job.answer.done()  # its client may have disconnected

    def _answer(self, job: Job, lane: Lane, fault: int, content: bytes, seconds: float) -> bool:
        """Complete `job` with what its decoder answered after `seconds` of CPU time. Returns
        whether the decoder can decode another image."""
        image = job.image
        if fault == 0 and len(content) == SIDE * SIDE * CHANNELS:
            if seconds > MAX_UNDERESTIMATE * job.seconds + LEAST_LIE:
                self._trust.lied(job.client, self._clock())
            if not job.answer.done():
                job.answer.set_result(as_pixels(content))
        elif fault == Fault.OUT_OF_MEMORY and lane is self._ordinary:
            self._begin_again(job)
            return False  # it may have said so for nothing, and then it would again
        elif fault in set(Fault):
            log.debug("not decoded", extra={"fields": _fields(image, Fault(fault).name, content)})
            if fault == Fault.OUT_OF_MEMORY:  # its header promised less
                self._trust.killed(job.client, self._clock())
            _fail(job, image.error(Fault(fault)))
            return fault != Fault.OUT_OF_MEMORY
        else:
            self._fail_or_begin_again(job, lane, "crash", image.error(Fault.DAMAGED))
            return False
        return True

    async def _ended(
        self,
        job: Job,
        template: Template,
        process: DecoderProcess,
        lane: Lane,
        end: DecoderEnded,
    ) -> None:
        """The decoder of `job` was killed, or crashed."""
        log.warning("a decoder %s", end, extra={"fields": _fields(job.image)})
        if end.killed_for == "cpu_time":
            error = job.image.too_slow(lane.max_seconds)
            self._fail_or_begin_again(job, lane, "cpu_time", error)
        elif end.killed_for == "time":  # its request has ended long ago
            self._on_kill("lost")
            if process.image_seconds < LEAST_WORK:
                process.image_seconds = STALL_SECONDS  # for which it kept a place
                self._trust.killed(job.client, self._clock())
        elif await self._was_killed(template, process):
            self._on_kill("lost")
            self._try_again(job, lane)
        else:
            self._fail_or_begin_again(job, lane, "crash", job.image.error(Fault.DAMAGED))

    async def _was_killed(self, template: Template, process: DecoderProcess) -> bool:
        """Whether the kernel, an operator, or the end of the template ended `process`."""
        try:
            return await template.reap(process) == -signal.SIGKILL
        except StartFailed:
            return True

    def _fail_or_begin_again(self, job: Job, lane: Lane, reason: str, error: Exception) -> None:
        """The image of `job` ended its decoder: it may need what expensive images may take."""
        self._on_kill(reason)
        if lane is self._ordinary:
            self._begin_again(job)
        else:
            self._trust.killed(job.client, self._clock())
            _fail(job, error)

    def _try_again(self, job: Job, lane: Lane) -> None:
        """The decoder of `job` was ended, but not by its image."""
        job.losses += 1
        if job.losses > MAX_LOSSES:
            _fail(job, DecoderLost())
        elif not job.answer.done():
            lane.put(job)

    def _begin_again(self, job: Job) -> None:
        """Put `job` behind the expensive images: it took more than its header says."""
        job.seconds = max(job.seconds, ORDINARY_LIMIT)
        self._trust.lied(job.client, self._clock())
        self._move_to_expensive(job)

    def _move_to_expensive(self, job: Job) -> None:
        if not job.answer.done():
            self._expensive.put(job)

    async def _free_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            before = asyncio.get_running_loop().time() - IDLE_SECONDS
            idle = [p for lane in self._lanes for p in lane.processes if not p.is_busy]
            for process in idle:
                if process.computes_for_itself():
                    log.warning("a decoder computes without an image, and is replaced")
                    process.kill()
                elif process.used_at and process.used_at < before:
                    process.free_memory()

    def _tell_restrictions(self, process: DecoderProcess) -> None:
        """Log the restrictions of `process`, once for decoders with the same."""
        if process.restrictions not in self._told:
            self._told.append(process.restrictions)
            log.info("decoder started", extra={"fields": {"restrictions": process.restrictions}})


def _fail(job: Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)


def _first(error: Exception) -> BaseException:
    return error.exceptions[0] if isinstance(error, ExceptionGroup) else error


def _fields(image: EncodedImage, fault: str = "", cause: bytes = b"") -> dict[str, object]:
    fields: dict[str, object] = {
        "kind": image.kind,
        "width": image.width,
        "height": image.height,
        "bytes": len(image.data),
    }
    if fault:
        fields |= {"fault": fault, "cause": cause.decode(errors="replace")}
    return fields
