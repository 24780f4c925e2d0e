"""Keeps the decoder processes ("decoders") running.

The decoders of ordinary images form one lane, and the decoders of expensive images form another
lane. All decoders are forked from one process, the template (a fork server).

Guarantees
- Each lane has the configured number of decoders, or as many as the system allows. A decoder that
  has ended is replaced immediately, or within `IDLE_SECONDS` if the decoder was idle. If the system
  allows no new process, the start is tried again every second.
- If the template ends, all its decoders end. A new template and new decoders are then started.
- A decoder that uses CPU time without an image is replaced.
- Idle decoders return freed memory to the operating system.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from service.decoding.costs import Costs
from service.decoding.lane import Decoder, Lane
from service.decoding.launch import Template
from service.decoding.process import DecoderProcess, StartFailed
from service.telemetry.logs import log

IDLE_SECONDS = 2.0
"""Number of seconds after which an idle decoder returns freed memory to the operating system, and
number of seconds between two checks of the idle decoders."""
RETRY_SECONDS = 1.0
"""Number of seconds between two attempts to start a decoder."""

DecodeNext = Callable[[Decoder], Awaitable[bool]]


class Fleet:
    """The decoder processes of all lanes."""

    def __init__(
        self, lanes: tuple[Lane, ...], decode_next: DecodeNext, template: Callable[[], Template]
    ) -> None:
        """
        Args:
            lanes: Lanes to run decoders for.
            decode_next: Coroutine function that waits for an image of a decoder's lane and lets the
                decoder decode the image. The function returns whether the decoder can decode
                another image.
            template: Function that creates the template process.
        """
        self.costs = Costs()
        """Estimates of CPU time, adjusted to the speed of this machine."""
        self._lanes = lanes
        self._decode_next = decode_next
        self._new_template = template
        self._logged: list[list[str]] = []

    async def run(self) -> None:
        """Run decoders until canceled."""
        while True:
            try:
                await self._run_template()
            except Exception as error:  # noqa: BLE001  # the service cannot work without decoders
                for lane in self._lanes:
                    lane.mark_failed()
                log.error(
                    "%s; starting the template and all decoders again in %g s",
                    _first(error),
                    RETRY_SECONDS,
                )
            await asyncio.sleep(RETRY_SECONDS)

    async def _run_template(self) -> None:
        """Run decoders until their template ends.

        Raises StartFailed, or an ExceptionGroup with the exceptions of the decoders' tasks.
        """
        template = self._new_template()
        try:
            await template.start()
            self.costs = Costs(template.sample_seconds)
            async with asyncio.TaskGroup() as group:
                for lane in self._lanes:
                    for _ in range(lane.decoders):
                        group.create_task(self._keep(template, lane))
                group.create_task(self._check_idle())
                group.create_task(_watch(template))
        finally:
            template.close()

    async def _keep(self, template: Template, lane: Lane) -> None:
        """Run a decoder of `lane`, and replace it when it ends.

        Raises StartFailed when the template has ended.
        """
        while True:
            try:
                async with lane.decoder(template) as decoder:
                    self._log_restrictions(decoder.process)
                    while await self._decode_next(decoder):
                        pass
            except StartFailed as error:
                if template.has_ended:
                    raise
                log.error("%s; trying again in %g s", error, RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)

    async def _check_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            before = asyncio.get_running_loop().time() - IDLE_SECONDS
            idle = [p for lane in self._lanes for p in lane.processes if not p.is_busy]
            for process in idle:
                if process.computes_for_itself():
                    log.warning("a decoder uses CPU time without an image and is replaced")
                    process.kill()
                elif process.used_at and process.used_at < before:
                    process.free_memory()
            for lane in self._lanes:
                lane.check()

    def _log_restrictions(self, process: DecoderProcess) -> None:
        """Log the restrictions of `process`, unless the same restrictions were logged before."""
        if process.restrictions not in self._logged:
            self._logged.append(process.restrictions)
            log.info("decoder started", extra={"fields": {"restrictions": process.restrictions}})


async def _watch(template: Template) -> None:
    """Wait until `template` has ended, and then raise StartFailed."""
    await template.ended.wait()
    raise StartFailed("the template process, which forks the decoder processes, has exited")


def _first(error: Exception) -> BaseException:
    return error.exceptions[0] if isinstance(error, ExceptionGroup) else error
