"""The engine: images in, class probabilities out, in lanes that compute side by side.

A lane is a thread and, on it, networks of its own. Everything that touches them (load, arrays,
forward, reading back, freeing, the last wait) happens on that thread: thread pools leak MXNet's
workspaces, and a network called from two threads deadlocks or computes nonsense (apache/mxnet
issues 12756, 19159). A GPU has one lane; why a CPU has several: docs/decisions/0027-lanes.md.

One version serves. `replace` loads another beside it, in steps that take turns with its batches,
and puts it in its place between two of them; what cannot be loaded changes nothing.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import sys
import time
import traceback
from collections import deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from model_store import manifest, precision, tiles
from model_store.cgroup import cores, memory
from model_store.device import Device, GpuMemory, choose, gpu_memory
from model_store.manifest import BadModel, Manifest, Parameters
from model_store.network import (
    SIDE,
    Image,
    Inputs,
    Network,
    Probabilities,
    Rows,
    buckets,
    outcomes,
)
from model_store.params import Arrays, opened
from model_store.precision import Precision
from model_store.runtime import is_for_cpu, load_mxnet

__all__ = ["SIDE", "GluonEngine", "Image", "Probabilities", "load_engine"]

TILES = "amx_int8"
"""In Linux's words (/proc/cpuinfo)."""
LOOK_EVERY = 1.0
"""Seconds between two looks at a GPU's memory."""
SWITCH = 0.001
"""Seconds after which the event loop must let a lane have the interpreter lock: between two batches
a lane wants it for microseconds, and has nothing to compute until it gets it. Python's are five."""
MOST_LANES = 4
ON_CPU, ON_GPU = 16, 64
"""The largest batch. All three where nothing else is asked for."""
TILE_BYTES = 7 * 2**20
"""What a convolution in 8 bits takes with tiles, in each bucket: oneDNN's, and not the image's."""

Arguments = TypeVarTuple("Arguments")
R = TypeVar("R")


class Lane:
    """A thread for life. First come, first served."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread

    async def call(self, call: Callable[[*Arguments], R], *arguments: *Arguments) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, call, *arguments)

    def send(self, call: Callable[[], None]) -> None:
        """Nobody waits for it, and it raises nothing."""
        self._thread.submit(call)


@dataclass(slots=True, eq=False)
class Batch:
    """Handed over, and not taken by a lane yet."""

    networks: Sequence[Network]
    """Of the version that computes it, one a lane."""
    inputs: Inputs
    answer: asyncio.Future[tuple[Rows, float]]

    def settle(self, outcome: tuple[Rows, float] | BaseException) -> None:
        """Complete the answer, on the event loop. An exception that no future takes (StopIteration)
        or that would end the caller's task (SystemExit, CancelledError) becomes a RuntimeError."""
        if self.answer.done():
            return  # the request has ended
        if not isinstance(outcome, BaseException):
            self.answer.set_result(outcome)
        elif isinstance(outcome, Exception) and not isinstance(outcome, StopIteration):
            self.answer.set_exception(outcome)
        else:
            failure = RuntimeError(f"{type(outcome).__name__} in the engine")
            failure.__cause__ = outcome
            self.answer.set_exception(failure)


class Computed(list[Probabilities | Exception]):
    """Outcomes, and when they were there (`time.monotonic`): a busy loop hears of it later."""

    def __init__(self, outcomes: Iterable[Probabilities | Exception], done: float) -> None:
        super().__init__(outcomes)
        self.done = done


class GluonEngine:
    """Made by `load_engine`. All of it is called from the event loop."""

    def __init__(
        self,
        mx: Any,
        device: Device,
        max_batch_size: int,
        lanes: Sequence[Lane],
        precision: str = "auto",
    ) -> None:
        self.device = device
        self._wanted = precision
        self.gpu_memory: GpuMemory | None = None
        """As of the latest batch, or up to a second before; None on a CPU."""
        self.on_assembled: Callable[[float], None] | None = None
        """Is told the seconds that it took to make a batch's images one array."""
        self._mx = mx
        self._max_batch_size = max_batch_size
        self._look_at = 0.0
        self._lanes = lanes
        self._handed = deque[Batch]()
        """Batches that no lane has taken yet. That which is free first takes the next."""
        self._networks: Sequence[Network] = ()
        """The version that serves, once a lane."""

    @property
    def lanes(self) -> int:
        """How many batches it computes at once."""
        return len(self._lanes)

    @property
    def model(self) -> Manifest:
        """Of the version that serves: the one that an `infer` called now will use."""
        return self._serving[0].model

    @property
    def precision(self) -> Precision:
        """In which that version computes, and why."""
        return self._serving[0].precision

    @property
    def warm_up_seconds(self) -> Mapping[int, Sequence[float]]:
        """Bucket -> seconds of each of its warm-up batches, in all lanes."""
        by_lane = [network.warm_up_seconds for network in self._serving]
        return {bucket: [s for one in by_lane for s in one[bucket]] for bucket in by_lane[0]}

    async def infer(self, images: Sequence[Image]) -> Computed:
        """One outcome per image, in order: its probabilities, or BadRow.

        Raises MemoryError where the device is out of memory, and whatever MXNet raises.
        """
        started = time.perf_counter()
        networks = self._serving
        inputs = networks[0].assemble(images)  # here, so that it may overlap another's compute
        if self.on_assembled is not None:
            self.on_assembled(time.perf_counter() - started)
        batch = Batch(networks, inputs, asyncio.get_running_loop().create_future())
        self._handed.append(batch)
        try:
            for number, lane in enumerate(self._lanes):
                lane.send(partial(self._compute_next, number))
            logits, done = await batch.answer
        except BaseException:
            with suppress(ValueError):  # a lane has taken it
                self._handed.remove(batch)  # or the next batch's lane would compute this one
            raise
        finally:
            del batch  # or a failure, whose traceback has this frame, would keep itself
        # Here, too: NumPy may give the interpreter lock away, and a lane would wait for it.
        rows = networks[0].probabilities(logits[: len(images)])
        return Computed(outcomes(rows, len(networks[0].model.classes)), done)

    async def observe(self, images: Sequence[Image]) -> dict[str, tuple[float, float]]:
        """The ranges for `manifest.Int8` that these images bring about. For a CPU."""
        network, size = self._serving[0], max(self.warm_up_seconds)
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        assembled = [network.assemble(part) for part in parts]
        return await self._lanes[0].call(network.observe, assembled)

    async def replace(
        self, folder: pathlib.Path, on_switch: Callable[[], None] | None = None
    ) -> None:
        """Verify, load and warm up the version in `folder`; let it serve from the next batch on;
        free the one that did. One at a time.

        `on_switch` is called in the moment of the switch: `model` is the new one, and no batch has
        been handed to it yet. What was handed over before is still computed by the old one.

        Raises BadModel, BadParams, PrecisionUnavailable, UnknownArchitecture, OSError, and whatever
        MXNet raises; the version that served goes on to.
        """
        networks = await self._load(folder)
        old, self._networks = self._networks, networks
        try:
            if on_switch is not None:
                on_switch()
        finally:
            await self._close(old)  # behind the batches that it still has

    async def unload(self) -> None:
        """Free the version that serves, if one does; until the next `replace` there is none."""
        old, self._networks = self._networks, ()
        await self._close(old)

    @property
    def _serving(self) -> Sequence[Network]:
        if not self._networks:
            raise RuntimeError("no version is loaded")
        return self._networks

    def _pairs(self, networks: Sequence[Network]) -> Iterator[tuple[Lane, Network]]:
        return zip(self._lanes, networks, strict=False)  # a load that failed has fewer

    async def _load(self, folder: pathlib.Path) -> Sequence[Network]:
        """Beside the version that serves; lane after lane, so that only one of them is slowed."""
        model, arrays = await asyncio.to_thread(_read, folder)
        bits = precision.choose(self._wanted, model, self.device.name)
        if bits.name == "int8" and tiles.used(os.environ):
            bits = Precision(bits.name, f"{bits.reason}; with AMX")
        networks: list[Network] = []
        try:
            for lane in self._lanes:
                network = Network(self._mx, model, self.device, bits, self._max_batch_size)
                networks.append(network)
                steps = network.load(arrays, beside=bool(self._networks))
                try:
                    while await lane.call(_step, steps):
                        pass  # and whoever came meanwhile has had a turn
                finally:
                    await lane.call(steps.close)
        except BaseException:
            await self._close(networks)
            raise
        return networks

    async def _close(self, networks: Sequence[Network]) -> None:
        for lane, network in self._pairs(networks):
            await lane.call(network.close)

    def _compute_next(self, lane: int) -> None:
        """On the thread of that lane. Every batch calls for each of them, and one comes."""
        try:
            batch = self._handed.popleft()
        except IndexError:
            return
        outcome: tuple[Rows, float] | BaseException
        try:
            outcome = self._compute(batch.networks[lane], batch.inputs)
        except BaseException as error:  # noqa: BLE001  # the caller must hear of any
            outcome = error
        batch.answer.get_loop().call_soon_threadsafe(batch.settle, outcome)
        del batch, outcome  # as in `infer`

    def _compute(self, network: Network, inputs: Inputs) -> tuple[Rows, float]:
        """The logits, and when they were computed."""
        logits, done = network.compute(inputs), time.monotonic()
        if done > self._look_at:
            self._look_at = done + LOOK_EVERY
            self.gpu_memory = gpu_memory(self._mx, self.device)
        return logits, done


@asynccontextmanager
async def load_engine(
    folder: pathlib.Path,
    device: str = "auto",
    threads: int = 1,
    max_batch_size: int | None = None,
    precision: str = "auto",
    lanes: int | None = 1,
) -> AsyncIterator[GluonEngine]:
    """An engine with the version in `folder` loaded and warm; closes it on the way out.

    `max_batch_size` None: 16 on a CPU, where larger batches only make callers wait, 64 on a GPU.
    `lanes`: batches that a CPU computes at once; None: one a core, 4 at most, and in int8 one less
    if there are several. A GPU has one, whatever is asked for.

    Raises BadModel, BadParams, UnknownArchitecture, DeviceUnavailable, MXNetUnavailable,
    PrecisionUnavailable.
    """
    with ExitStack() as threads_open:

        def lane() -> Lane:
            thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
            return Lane(threads_open.enter_context(thread))

        first = lane()
        with_tiles = is_for_cpu(device) and await asyncio.to_thread(
            _worth_tiles, folder, precision, max_batch_size or ON_CPU
        )
        mx, chosen = await first.call(_start, device, threads, with_tiles)
        on_cpu = chosen.name == "cpu"
        size = max_batch_size or (ON_CPU if on_cpu else ON_GPU)
        if on_cpu and lanes is None:
            lanes = await asyncio.to_thread(_lanes_for, folder, precision)
        others = [lane() for _ in range(1, lanes or 1)] if on_cpu else []
        engine = GluonEngine(mx, chosen, size, [first, *others], precision)
        try:
            await engine.replace(folder)
            yield engine
        finally:
            await engine.unload()


def _start(device: str, threads: int, with_tiles: bool) -> tuple[Any, Device]:
    # Run in order, an operator is computed on the thread that calls it, and so lanes are computed
    # side by side. A GPU would be waited for after each operator.
    mx = load_mxnet(threads, is_for_cpu(device), with_tiles)
    # What is imported stays. Full collections pass over it from now on: one comes with every
    # version that is freed, and took 120 ms in which no thread runs, instead of 7.
    gc.freeze()
    sys.setswitchinterval(SWITCH)
    return mx, choose(mx, device)


def _lanes_for(folder: pathlib.Path, wanted: str) -> int:
    """How many a CPU has for the version in `folder`. In int8 the network takes less of a core than
    the event loop does to feed it: another lane would only contend with it."""
    bits = precision.choose(wanted, manifest.read_version(folder), "cpu")
    lanes = min(cores(), MOST_LANES)
    return max(1, lanes - 1) if bits.name == "int8" else lanes


def _worth_tiles(folder: pathlib.Path, wanted: str, max_batch_size: int) -> bool:
    """Whether the version in `folder` is computed in 8 bits, by a CPU that has tiles, and what they
    take, twice while another version is loaded, leaves two thirds of the memory for all else.

    Raises BadModel, PrecisionUnavailable.
    """
    if TILES not in precision.cpu_flags():
        return False
    model = manifest.read_version(folder)
    if model.int8 is None or precision.choose(wanted, model, "cpu").name != "int8":
        return False
    convolutions = len(model.int8.ranges)
    return 2 * TILE_BYTES * convolutions * len(buckets(max_batch_size, few=True)) < memory() / 3


def _step(steps: Generator[None, None, None]) -> bool:
    """Go one step; False after the last."""
    try:
        return next(steps, steps) is None
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # or it would keep the network, and free it
        raise  # on another thread


def _read(folder: pathlib.Path) -> tuple[Manifest, Arrays]:
    """The version in `folder`, verified. NumPy only: on any thread. Raises BadModel, BadParams."""
    model = manifest.read_version(folder)
    return model, read_described(folder / model.parameters.file, model.parameters)


def read_described(path: pathlib.Path, described: Parameters) -> Arrays:
    """The arrays of the file that the manifest describes. Raises BadModel, BadParams."""
    with opened(path) as source:
        # First, so that nothing is read of a file of any other size.
        if source.size != described.bytes:
            raise _another(path, f"it has {source.size:,} bytes instead of {described.bytes:,}")
        arrays = source.arrays()
        if source.sha256() != described.sha256:
            raise _another(path, "its SHA-256 differs")
    return arrays


def _another(path: pathlib.Path, why: str) -> BadModel:
    return BadModel(
        f"{path} is not the file that {manifest.MANIFEST} names: {why}. "
        "Restore the file, or import it as a new version"
    )
