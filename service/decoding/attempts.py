"""Sends images to decoder processes ("decoders"), and handles their results.

Ordinary images need little CPU time and memory according to their headers. All other images are
expensive. Each kind has its own decoders, which form a lane. The result of an attempt to decode an
image has these consequences:
- If the decoder returns pixels or reports that the image is invalid, the request gets this result,
  and the decoder decodes the next image.
- If an image took more CPU time than estimated from its header, its client is distrusted for a
  while: all images of the client count as expensive (`trust`). If an ordinary image exceeded its
  limit on CPU time, it is decoded again as an expensive image. If an expensive image exceeded its
  limit, it is rejected, and the killed decoder counts against the client.
- If an ordinary image ran out of memory or crashed its decoder, it is decoded again as an
  expensive image. If an expensive image ran out of memory or crashed its decoder, earlier images
  may be the cause. Therefore, the image is decoded again in a new decoder. If the image fails in a
  new decoder, it is rejected, and the failure counts against the client.
- A decoder that slept instead of decoding counts as crashed.
- If something outside the service ended the decoder, the image is decoded one more time. If an
  image exceeded its time limit but used little CPU time, other processes delayed the decoder.
  Neither case counts against the client.

In all cases except the first, the decoder is replaced, because a malicious image may control the
decoder. The CPU time of the replacement is charged to the client, unless something outside the
service ended the decoder.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

from batching import DeadlineUnreachable, on_error, reject
from service.decoding import template as template_process
from service.decoding.image import EncodedImage, as_pixels
from service.decoding.lane import MAX_UNDERESTIMATE, Job, Lane
from service.decoding.launch import Template
from service.decoding.picture import CHANNELS, SIDE, Fault
from service.decoding.process import DecoderEnded, DecoderProcess, StartFailed
from service.decoding.trust import Trust
from service.errors import DecoderLost, DecodersDown, DecodersKilled
from service.telemetry.logs import log

LEAST_LIE = 0.005
"""An image may take `MAX_UNDERESTIMATE` x its estimate, plus this number of CPU seconds, without
consequences."""
MAX_LOSSES = 1
"""Maximum number of times that an image is decoded again because its decoder was killed by
something outside the service."""
STALL_SECONDS = 5.0
"""Number of seconds that a decoder may continue after the deadline of its image."""
REPLACEMENT_SECONDS = 0.02
"""Number of CPU seconds that a client is charged for the replacement of a decoder."""


class Attempts:
    """Decodes the images of both lanes."""

    def __init__(
        self,
        ordinary: Lane,
        expensive: Lane,
        trust: Trust,
        on_kill: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            ordinary: Lane of ordinary images.
            expensive: Lane of expensive images, and of ordinary images that exceeded a limit.
            trust: Record of clients with images that ended decoders or exceeded their estimates.
            on_kill: Function that is called when a decoder ends unexpectedly. The argument is the
                reason: `cpu_time`, `crash`, or `lost` if something outside the service ended the
                decoder.
            clock: Function that returns the time of a monotonic clock, in seconds.
        """
        self._ordinary = ordinary
        self._expensive = expensive
        self._trust = trust
        self._on_kill = on_kill
        self._clock = clock

    async def decode_next(self, template: Template, process: DecoderProcess, lane: Lane) -> bool:
        """Wait for the next image of `lane`, and let `process` decode it.

        `template` is the process that decoders are forked from. Returns whether `process` can
        decode another image.
        """
        job = await lane.take(process)
        if job is None:
            log.warning("an idle decoder ended or sent data, and is replaced")
            self._on_kill("lost" if await _was_killed(template, process, lane) else "crash")
            return False
        process.image_seconds = 0.0
        goes_on = canceled = False
        try:
            with on_error(reject, job.answer):
                try:
                    goes_on = await self._decode(job, template, process, lane)
                except asyncio.CancelledError:  # the template and all its decoders have ended
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
        """Let `process` decode the image of `job`.

        Returns whether `process` can decode another image.
        """
        if not self._is_worth_it(job):
            return True
        if lane is self._ordinary and not self._trust.believes(job.client, self._clock()):
            self._move_to_expensive(job)
            return True
        try:
            patience = job.deadline - self._clock() + STALL_SECONDS
            fault, content = await process.decode(job.image, lane.max_cpu_seconds(job), patience)
        except DecoderEnded as end:
            log.warning("a decoder %s", end, extra={"fields": _fields(job.image)})
            await self._ended(job, template, process, lane, end)
            return False
        if fault == 0 and len(content) == SIDE * SIDE * CHANNELS:
            return self._answer(job, process, content)
        if fault not in set(Fault):
            await self._failed(job, template, process, lane, "crash")
            return False
        fields = _fields(job.image, Fault(fault).name, content)
        if fault == Fault.OUT_OF_MEMORY:
            log.warning("a decoder ran out of memory", extra={"fields": fields})
            await self._failed(job, template, process, lane, "memory")
            return False
        log.debug("not decoded", extra={"fields": fields})
        _fail(job, job.image.error(Fault(fault)))
        return True

    def _is_worth_it(self, job: Job) -> bool:
        """Whether decoding the image of `job` can still end before its deadline.

        Fails the job if decoding would end too late, or if its client is rejected for a while.
        """
        now = self._clock()
        late = now + job.seconds - job.deadline
        if late > 0 and (self._ordinary.queue or self._expensive.queue):
            _fail(job, DeadlineUnreachable("decoding took longer than estimated", late))
        if (wait := self._trust.wait(job.client, now)) > 0:
            _fail(job, DecodersKilled(wait))
        return not job.answer.done()  # its client may have disconnected

    def _answer(self, job: Job, process: DecoderProcess, content: bytes) -> bool:
        """Set the result of `job` to the pixels. Returns whether `process` can decode another
        image."""
        if not job.answer.done():
            job.answer.set_result(as_pixels(content))
        if process.image_seconds <= MAX_UNDERESTIMATE * job.seconds + LEAST_LIE:
            return True
        self._trust.lied(job.client, self._clock())
        process.image_seconds += REPLACEMENT_SECONDS
        # A compromised decoder could be slow on purpose, so that other clients are distrusted.
        return False

    async def _ended(
        self,
        job: Job,
        template: Template,
        process: DecoderProcess,
        lane: Lane,
        end: DecoderEnded,
    ) -> None:
        """Handle the end of `process`, which was decoding the image of `job`."""
        if end.killed_for == "cpu_time":
            await self._failed(job, template, process, lane, "cpu_time")
        elif end.killed_for == "time":  # the deadline of the request has passed
            self._on_kill("lost")
        elif end.killed_for is None and await _was_killed(template, process, lane):
            self._on_kill("lost")
            self._try_again(job, lane)
        else:
            await self._failed(job, template, process, lane, "crash")

    async def _failed(
        self, job: Job, template: Template, process: DecoderProcess, lane: Lane, reason: str
    ) -> None:
        """Handle a failed attempt to decode the image of `job`.

        Args:
            job: Job with the image.
            template: Process that decoders are forked from.
            process: Decoder that failed.
            lane: Lane of `process`.
            reason: Limit that the image exceeded (`cpu_time` or `memory`), or `crash`.
        """
        if reason != "memory":
            self._on_kill(reason)
        process.image_seconds += REPLACEMENT_SECONDS
        if lane is self._ordinary:
            if reason == "cpu_time":
                self._trust.lied(job.client, self._clock())
            job.seconds = max(job.seconds, lane.max_seconds)
            self._move_to_expensive(job)
        elif process.images > 1 and reason != "cpu_time":
            await self._decode_in_new(job, template, process, lane)
        else:
            self._trust.killed(job.client, self._clock())
            _fail(job, _error(job.image, lane, reason))

    async def _decode_in_new(
        self, job: Job, template: Template, process: DecoderProcess, lane: Lane
    ) -> None:
        """Decode the image of `job` in a new decoder, after `process` has ended."""
        lane.processes.discard(process)
        process.close()  # frees descriptors for the new decoder
        async with AsyncExitStack() as stack:
            try:
                await lane.reap(template, process)
                new = await stack.enter_async_context(lane.decoder(template))
            except StartFailed:
                self._try_again(job, lane)
                return
            try:
                await self._decode(job, template, new, lane)
            finally:
                process.image_seconds += new.image_seconds

    def _try_again(self, job: Job, lane: Lane) -> None:
        """Put `job` back into its lane, because something other than its image ended the decoder.

        Fails the job if its decoders have ended too often.
        """
        job.losses += 1
        if job.losses > MAX_LOSSES:
            _fail(job, DecoderLost())
        elif not job.answer.done() and job not in lane.queue:
            lane.put(job)

    def _move_to_expensive(self, job: Job) -> None:
        if self._expensive.is_down:
            _fail(job, DecodersDown())
        elif not job.answer.done():
            self._expensive.put(job)


async def _was_killed(template: Template, process: DecoderProcess, lane: Lane) -> bool:
    """Whether the kernel or an operator has ended `process`, or its template has ended."""
    result = await lane.reap(template, process)
    if result == template_process.LIVED_ON:  # the decoder closed its socket but did not exit
        process.image_seconds += template_process.EXIT_SECONDS
    return result == -signal.SIGKILL


def _error(image: EncodedImage, lane: Lane, reason: str) -> Exception:
    if reason == "cpu_time":
        return image.too_slow(lane.max_seconds)
    return image.error(Fault.OUT_OF_MEMORY if reason == "memory" else Fault.DAMAGED)


def _fail(job: Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)


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
