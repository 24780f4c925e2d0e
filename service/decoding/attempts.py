"""Sends images to decoder processes ("decoders"), and handles their results.

Ordinary images need little CPU time and memory according to their headers. All other images are
expensive. Each kind has its own decoders, which form a lane. A decoder that returns pixels or
reports that the image is invalid decodes the next image. A decoder fails if it crashes, sleeps
instead of decoding, runs out of memory, or exceeds its limit on CPU time.

If a decoder fails, its earlier images may be the cause. Therefore, only a failure in a new decoder
counts:
- If a used decoder fails, the image is decoded once more, in a new decoder of the same lane.
- If an ordinary image exceeds a limit on memory or CPU time in a new decoder, it is decoded as an
  expensive image.
- In all other cases, the image is rejected, and the failure counts against its client (`trust`).

Other events have these consequences:
- If an image took more CPU time than estimated from its header, this is recorded (`trust`). Images
  of distrusted clients count as expensive.
- If something outside the service ended the decoder, the image is decoded once more, in a new
  decoder. If an image exceeded its time limit but used little CPU time, other processes delayed the
  decoder. Neither case counts against the client.
- If an idle decoder ends, sends data or computes, one of its earlier images is the cause. The
  replacement is charged to the client of the last image. If all images of the decoder came from one
  client, this also counts against the client. An image that the decoder did not receive is decoded
  in a new decoder.

In all these cases, the decoder is replaced, because a malicious image may control the decoder. The
CPU time of the replacement is charged to the client, unless something outside the service ended the
decoder. If an image fails in a used decoder but not in a new one, the client of the previous image
is charged half of the CPU time of the failed attempt and of the replacement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from batching import DeadlineUnreachable, on_error, reject
from service.decoding.image import EncodedImage, as_pixels
from service.decoding.lane import MAX_UNDERESTIMATE, Decoder, Job, Lane
from service.decoding.picture import CHANNELS, SIDE, Fault
from service.decoding.process import DecoderEnded, DecoderProcess, ImageNotReceived
from service.decoding.trust import Trust
from service.errors import DecoderLost, DecodersDown, DecodersKilled
from service.telemetry.logs import log

LEAST_LIE = 0.005
"""An image may take `MAX_UNDERESTIMATE` x its estimate, plus this number of CPU seconds, without
consequences."""
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

    async def decode_next(self, decoder: Decoder) -> bool:
        """Wait for the next image of the lane of `decoder`, and let `decoder` decode it.

        Returns whether `decoder` can decode another image.
        """
        process, lane = decoder.process, decoder.lane
        job = await lane.take(process)
        if job is None:
            await self._idle_ended(decoder)
            return False
        process.image_seconds = 0.0
        goes_on = canceled = False
        try:
            with on_error(reject, job.answer):
                try:
                    goes_on = await self._decode(job, decoder)
                except asyncio.CancelledError:  # the template and all its decoders have ended
                    canceled = True
                    self._try_again(job, lane)
        finally:
            if goes_on and job.suspect is not None:
                job.spent /= 2
                lane.queue.add(job.suspect, job.spent)
            job.spent += process.image_seconds
            if job not in lane.retries:
                lane.queue.charge(job.client, job.spent)
                job.spent = 0.0
        if canceled:
            raise asyncio.CancelledError
        return goes_on

    async def _decode(self, job: Job, decoder: Decoder) -> bool:
        """Let `decoder` decode the image of `job`.

        A retry is made even if the request has ended: it shows whether the image ends decoders.
        Returns whether `decoder` can decode another image.
        """
        process, lane = decoder.process, decoder.lane
        if not job.is_retry and not self._is_worth_it(job):
            return True
        if lane is self._ordinary and not self._trust.believes(job.client, self._clock()):
            self._move_to_expensive(job)
            return True
        try:
            patience = job.deadline - self._clock() + STALL_SECONDS
            fault, content = await process.decode(job.image, lane.max_cpu_seconds(job), patience)
        except ImageNotReceived:
            await self._idle_ended(decoder)
            process.image_seconds = 0.0
            self._try_again(job, lane)
            return False
        except DecoderEnded as end:
            log.warning("a decoder %s", end, extra={"fields": _fields(job.image)})
            await self._ended(job, decoder, end)
            return False
        decoder.used_by(job.client)
        if fault == 0 and len(content) == SIDE * SIDE * CHANNELS:
            return self._answer(job, process, content)
        if fault not in set(Fault):
            self._failed(job, decoder, "crash")
            return False
        fields = _fields(job.image, Fault(fault).name, content)
        if fault == Fault.OUT_OF_MEMORY:
            log.warning("a decoder ran out of memory", extra={"fields": fields})
            self._failed(job, decoder, "memory")
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

    async def _ended(self, job: Job, decoder: Decoder, end: DecoderEnded) -> None:
        """Handle the end of `decoder`, which was decoding the image of `job`."""
        if end.killed_for == "cpu_time":
            self._failed(job, decoder, "cpu_time")
        elif end.killed_for == "time":  # the deadline of the request has passed
            self._on_kill("lost")
        elif end.killed_for is None and await decoder.was_lost():
            self._on_kill("lost")
            self._try_again(job, decoder.lane)
        else:
            self._failed(job, decoder, "crash")

    async def _idle_ended(self, decoder: Decoder) -> None:
        """Handle the end of `decoder`, or data that it sent, while it decoded no image."""
        log.warning("an idle decoder ended or sent data, and is replaced")
        decoder.process.image_seconds = REPLACEMENT_SECONDS
        lost = await decoder.was_lost()
        self._on_kill("lost" if lost else "crash")
        if lost or decoder.client is None:
            return
        decoder.lane.queue.add(decoder.client, decoder.process.image_seconds)
        if not decoder.is_shared:
            self._trust.killed(decoder.client, self._clock())

    def _failed(self, job: Job, decoder: Decoder, reason: str) -> None:
        """Handle a failed attempt to decode the image of `job`.

        Args:
            job: Job with the image.
            decoder: Decoder that failed.
            reason: Limit that the image exceeded (`cpu_time` or `memory`), or `crash`.
        """
        if reason != "memory":
            self._on_kill(reason)
        decoder.process.image_seconds += REPLACEMENT_SECONDS
        if decoder.process.images > 1:
            job.suspect = decoder.client
            self._try_again(job, decoder.lane)
        elif decoder.lane is self._ordinary and reason != "crash":
            if reason == "cpu_time":
                self._trust.lied(job.client, self._clock())
            job.seconds = max(job.seconds, decoder.lane.max_seconds)
            self._move_to_expensive(job)
        else:
            self._trust.killed(job.client, self._clock())
            _fail(job, _error(job.image, decoder.lane, reason))

    def _try_again(self, job: Job, lane: Lane) -> None:
        """Let a new decoder of `lane` decode the image of `job`, or fail the job if this decoder
        was a new one for that purpose."""
        if job.is_retry:
            _fail(job, DecoderLost())
        else:
            job.is_retry = True
            lane.retries.append(job)

    def _move_to_expensive(self, job: Job) -> None:
        if self._expensive.is_down:
            _fail(job, DecodersDown())
        elif not job.answer.done():
            job.is_retry, job.suspect = False, None
            self._expensive.put(job)


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
