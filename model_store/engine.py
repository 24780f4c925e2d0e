"""Engine: computes class probabilities for batches of images.

Several lanes run batches at the same time. A lane is a thread that runs one batch at a time. The
engine has one lane on a GPU and several lanes on a CPU (docs/decisions/0027-lanes.md). Each lane
has its own replica, which is a loaded copy of the version.

One version is active. `replace` loads another version while the active version still runs
batches, and then makes the new version active. If the new version cannot be loaded, nothing
changes.
"""

from __future__ import annotations

import asyncio
import gc
import pathlib
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from model_store import backends, precision, versions
from model_store.backend import Backend, BackendChoice, Request
from model_store.batch import (
    SIDE,
    BatchFormat,
    Image,
    Inputs,
    Probabilities,
    Results,
    Rows,
    buckets,
)
from model_store.cgroup import cores
from model_store.device import Device, GpuMemory
from model_store.lane import Lane
from model_store.manifest import BackendName, Manifest
from model_store.precision import Precision
from model_store.replica import Replica

__all__ = ["SIDE", "Image", "LaneEngine", "Probabilities", "Results", "load_engine"]

MEMORY_INTERVAL = 1.0
"""Minimum seconds between two readings of a GPU's memory."""
SWITCH_INTERVAL = 0.001
"""Seconds after which the event loop gives Python's interpreter lock (GIL) to a lane that waits for
the lock. Between two batches, a lane needs the lock for microseconds. While a lane waits for the
lock, the lane does no other work. Python's default is 0.005."""
MAX_LANES = 4
"""Default maximum number of lanes on a CPU."""
MAX_BATCH_ON_CPU, MAX_BATCH_ON_GPU = 16, 64
"""Default maximum batch sizes."""


@dataclass(slots=True, eq=False)
class HandedBatch:
    """A batch that was submitted to the engine, and the future that the caller awaits."""

    replicas: Sequence[Replica]
    """Replicas (loaded copies) of the version that runs the batch, one for each lane."""
    inputs: Inputs
    """The network's input, from `BatchFormat.assemble`."""
    answer: asyncio.Future[tuple[Rows, float]]
    """Future whose result is the logits, and the time by `time.monotonic` at which the logits were
    computed."""

    def settle(self, result: tuple[Rows, float] | BaseException) -> None:
        """Complete `answer`. Must be called on the event loop.

        A future does not accept StopIteration, and an exception such as SystemExit or
        CancelledError would end the caller's task. Such exceptions are replaced by a RuntimeError.
        """
        if self.answer.done():
            return  # the caller has canceled
        if not isinstance(result, BaseException):
            self.answer.set_result(result)
        elif isinstance(result, Exception) and not isinstance(result, StopIteration):
            self.answer.set_exception(result)
        else:
            error = RuntimeError(f"{type(result).__name__} in the engine")
            error.__cause__ = result
            self.answer.set_exception(error)


class LaneEngine:
    """Runs batches in lanes. All methods must be called on the event loop.

    `load_engine` creates engines.
    """

    def __init__(
        self,
        backend: Backend,
        max_batch_size: int,
        lanes: Sequence[Lane],
        precision: str = "auto",
        backend_reason: str = "as requested",
    ) -> None:
        """
        Args:
            backend: Creates the networks.
            max_batch_size: Maximum number of images in a batch.
            lanes: Threads that compute batches, at least one.
            precision: auto, fp32, int8 or fp16; see `precision.choose`.
            backend_reason: Reason why the backend was chosen.
        """
        self.backend = BackendChoice(backend.name, backend_reason)
        """Backend that runs the batches, with the reason why it was chosen."""
        self.gpu_memory: GpuMemory | None = None
        """Memory of the GPU, read after a batch and at most once per second. None on a CPU."""
        self.on_assembled: Callable[[float], None] | None = None
        """Function that is called for each batch with the time in seconds that the conversion of
        its images to an array took. None: the time is not reported."""
        self._backend = backend
        self._wanted_precision = precision
        self._buckets = buckets(max_batch_size, few=backend.few_buckets)
        self._read_memory_at = 0.0
        self._lanes = lanes
        self._handed = deque[HandedBatch]()
        """Batches that wait for a free lane."""
        self._replicas: Sequence[Replica] = ()
        """Replicas of the active version, one for each lane."""

    @property
    def device(self) -> Device:
        """Device that runs the batches."""
        return self._backend.device

    @property
    def lanes(self) -> int:
        """Number of batches that the engine runs at the same time."""
        return len(self._lanes)

    @property
    def max_in_flight(self) -> int:
        """Recommended maximum number of batches that are submitted and not returned yet.

        The number is one more than the number of lanes, so that the next batch is ready when a lane
        becomes free.
        """
        return len(self._lanes) + 1

    @property
    def model(self) -> Manifest:
        """Manifest of the active version, which the next call of `infer` uses."""
        return self._serving[0].model

    @property
    def precision(self) -> Precision:
        """Precision of the active version, with the reason why that precision was chosen."""
        return self._serving[0].precision

    @property
    def warm_up_seconds(self) -> Mapping[int, Sequence[float]]:
        """Duration in seconds of every warm-up batch of all lanes, grouped by bucket (batch
        size)."""
        by_lane = [replica.warm_up_seconds for replica in self._serving]
        return {bucket: [s for one in by_lane for s in one[bucket]] for bucket in by_lane[0]}

    async def infer(self, images: Sequence[Image]) -> Results[Probabilities | Exception]:
        """Run a batch of images.

        Args:
            images: At most `max_batch_size` images.

        Returns:
            One result for each image, in order: the probabilities, or BadRow if the network's
            output is invalid.

        Raises:
            MemoryError: The device is out of memory.
            Exception: The network or its library failed.
        """
        started = time.perf_counter()
        replicas = self._serving
        batch_format = replicas[0].format
        inputs = batch_format.assemble(images)  # on this thread, while lanes run other batches
        if self.on_assembled is not None:
            self.on_assembled(time.perf_counter() - started)
        batch = HandedBatch(replicas, inputs, asyncio.get_running_loop().create_future())
        self._handed.append(batch)
        try:
            for number, lane in enumerate(self._lanes):
                lane.send(partial(self._compute_next, number))
            logits, computed_at = await batch.answer
        except BaseException:
            with suppress(ValueError):  # a lane has already taken the batch
                self._handed.remove(batch)  # no lane runs the batch of a canceled call
            raise
        finally:
            # Breaks a reference cycle: batch -> exception -> traceback -> this frame -> batch.
            del batch
        # The softmax also runs on the event loop's thread. A lane that called NumPy might release
        # the interpreter lock, and would then have to wait until it gets the lock back.
        rows = batch_format.probabilities(logits[: len(images)])
        return Results(batch_format.check_rows(rows), computed_at)

    async def replace(
        self, folder: pathlib.Path, on_switch: Callable[[], None] | None = None
    ) -> None:
        """Load another version, make it the active version, and free the previous version.

        Calls must not overlap. If the new version cannot be loaded, the previous version remains
        active.

        Args:
            folder: Folder of the new version.
            on_switch: Function that is called when the new version becomes active, before the new
                version runs its first batch. The previous version still runs the batches that were
                submitted earlier. None: no function is called.

        Raises:
            BadModel, BadParams, BackendUnavailable, PrecisionUnavailable, UnknownArchitecture,
            OSError.
            Exception: The network or its library failed.
        """
        replicas = await self._load(folder)
        previous, self._replicas = self._replicas, replicas
        try:
            if on_switch is not None:
                on_switch()
        finally:
            await self._close(previous)  # runs after the previous version's last batch

    async def unload(self) -> None:
        """Free the active version, if there is one. `infer` raises until the next `replace`."""
        previous, self._replicas = self._replicas, ()
        await self._close(previous)

    @property
    def _serving(self) -> Sequence[Replica]:
        if not self._replicas:
            raise RuntimeError("no version is loaded")
        return self._replicas

    async def _load(self, folder: pathlib.Path) -> Sequence[Replica]:
        """Load a version in one lane after the other, so that only one lane at a time is slow."""
        backend = self._backend
        model = await asyncio.to_thread(versions.read_manifest, folder)
        backends.check(backend.name, model)
        chosen = precision.choose(self._wanted_precision, model, self.device.name, backend.name)
        if accelerator := backend.accelerator(chosen.name):
            chosen = Precision(chosen.name, f"{chosen.reason}; with {accelerator}")
        networks = await asyncio.to_thread(
            backend.networks, folder, model, chosen.name, self._buckets, len(self._lanes)
        )
        batch_format = BatchFormat(model, self._buckets, backend.normalizes)
        replicas: list[Replica] = []
        try:
            for lane, network in zip(self._lanes, networks, strict=True):
                replicas.append(
                    Replica(network, model, chosen, backend.name, batch_format, self._buckets)
                )
                await lane.run_steps(replicas[-1].load(beside=bool(self._replicas)))
        except BaseException:
            await self._close(replicas)
            raise
        return replicas

    async def _close(self, replicas: Sequence[Replica]) -> None:
        for lane, replica in self._pairs(replicas):
            await lane.call(replica.close)

    def _pairs(self, replicas: Sequence[Replica]) -> Iterator[tuple[Lane, Replica]]:
        # If loading failed, there are fewer replicas than lanes.
        return zip(self._lanes, replicas, strict=False)

    def _compute_next(self, lane: int) -> None:
        """Run the next batch, if a batch waits. Must be called on the thread of `lane`.

        For every batch, this method is called in all lanes. The first free lane takes the batch.
        """
        try:
            batch = self._handed.popleft()
        except IndexError:
            return
        result: tuple[Rows, float] | BaseException
        try:
            result = self._compute(batch.replicas[lane], batch.inputs)
        except BaseException as error:  # noqa: BLE001  # `infer` raises it
            result = error
        batch.answer.get_loop().call_soon_threadsafe(batch.settle, result)
        del batch, result  # breaks a reference cycle, as in `infer`

    def _compute(self, replica: Replica, inputs: Inputs) -> tuple[Rows, float]:
        """Return the logits, and the time by `time.monotonic` at which they were computed."""
        logits, computed_at = replica.compute(inputs), time.monotonic()
        if computed_at > self._read_memory_at:
            self._read_memory_at = computed_at + MEMORY_INTERVAL
            self.gpu_memory = self._backend.gpu_memory()
        return logits, computed_at


@asynccontextmanager
async def load_engine(
    folder: pathlib.Path,
    device: str = "auto",
    threads: int = 1,
    max_batch_size: int | None = None,
    precision: str = "auto",
    lanes: int | None = 1,
    backend: str = "auto",
) -> AsyncIterator[LaneEngine]:
    """Yield an engine whose version is loaded and warmed up. Leaving the context closes the engine.

    Args:
        folder: Folder of the version.
        device: auto, cpu, gpu or gpu:N.
        threads: Number of CPU threads that run one batch.
        max_batch_size: Maximum number of images in a batch. None: 16 on a CPU, where larger batches
            are not more efficient, and 64 on a GPU.
        precision: auto, fp32, int8 or fp16; see `precision.choose`.
        lanes: Number of batches that run on a CPU at the same time. A GPU always runs one batch.
            None: the number of CPU cores, but at most 4. In int8, None means one lane less, but at
            least one lane.
        backend: auto, mxnet or onnxruntime; see `backends`.

    Raises:
        BadModel, BadParams, UnknownArchitecture, DeviceUnavailable, BackendUnavailable,
        PrecisionUnavailable.
    """
    with ExitStack() as open_threads:

        def new_lane() -> Lane:
            thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
            return Lane(open_threads.enter_context(thread))

        first = new_lane()
        model = await asyncio.to_thread(versions.read_manifest, folder)
        request = Request(model, device, threads, precision, max_batch_size or MAX_BATCH_ON_CPU)
        started, choice = await first.call(backends.start, backend, request)
        _tune_interpreter()
        on_cpu = started.device.name == "cpu"
        size = max_batch_size or (MAX_BATCH_ON_CPU if on_cpu else MAX_BATCH_ON_GPU)
        if on_cpu and lanes is None:
            lanes = default_lanes(model, precision, started.name)
        others = [new_lane() for _ in range(1, lanes or 1)] if on_cpu else []
        engine = LaneEngine(started, size, [first, *others], precision, choice.reason)
        try:
            await engine.replace(folder)
            yield engine
        finally:
            await engine.unload()


def _tune_interpreter() -> None:
    # Garbage collections skip the objects that exist now, such as modules. When a version is
    # replaced, a full collection is needed, which stops all threads. A collection that skips these
    # objects takes 7 ms instead of 120 ms.
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL)


def default_lanes(model: Manifest, wanted_precision: str, backend: BackendName = "mxnet") -> int:
    """Return the default number of lanes on a CPU for a version.

    In int8, one core is left for the event loop: the event loop needs more CPU time to prepare a
    batch than the neural network needs to compute the batch.

    Args:
        model: Manifest of the version.
        wanted_precision: As in `precision.choose`.
        backend: Name of the backend that runs the version.

    Raises:
        PrecisionUnavailable.
    """
    chosen = precision.choose(wanted_precision, model, "cpu", backend)
    lanes = min(cores(), MAX_LANES)
    return max(1, lanes - 1) if chosen.name == "int8" else lanes
