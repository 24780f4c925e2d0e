"""The engine: images in, class probabilities out, on one thread that owns MXNet for life.

Everything that touches MXNet (import, load, arrays, forward, reading back, the last wait)
happens on that thread: thread pools leak MXNet's workspaces, and a network called from two
threads deadlocks or computes nonsense (apache/mxnet issues 12756, 19159).

A batch is padded to the next bucket: 1, 2, 4, 8, ... up to the largest batch. Each bucket has a
network object of its own, since switching shapes inside one costs more than a millisecond; they
share their parameters. Every bucket is warmed up before the engine is handed out.
"""

from __future__ import annotations

import asyncio
import pathlib
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from model_store import manifest
from model_store.architectures import build
from model_store.device import Device, choose
from model_store.manifest import BadModel, Manifest, Parameters
from model_store.params import Arrays, check_params, read_params, sha256
from model_store.runtime import load_mxnet

SIDE = 32
WARM_UP_RUNS = 5
LOOK_EVERY = 1.0
"""Seconds between two looks at a GPU's memory."""
# In the words of CUDA, of cuBLAS and cuDNN, of MXNet on a CPU, of C++.
OUT_OF_MEMORY = re.compile(
    r"out of memory|_STATUS_ALLOC_FAILED|failed to allocate cpu memory|memory allocation failed"
    r"|bad_alloc",
    re.IGNORECASE,
)

Image: TypeAlias = npt.NDArray[np.uint8]
"""(32, 32, 3), RGB, height x width x channel."""
Probabilities: TypeAlias = npt.NDArray[np.float32]
"""(classes,), a softmax: not negative, sum 1."""
Inputs: TypeAlias = npt.NDArray[np.float32]
"""(bucket, 3, 32, 32), normalised."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes of the whole GPU, whoever uses them."""

    free: int
    total: int


class BadRow(ArithmeticError):
    """The network's output for this image is not one finite number a class."""


class GluonEngine:
    """A loaded, warmed network. Made by `load_engine`; `infer` may be called from the loop only."""

    def __init__(self, model: Manifest, network: _Network, thread: ThreadPoolExecutor) -> None:
        self.model = model
        self.device = network.device
        self.warm_up_seconds = network.warm_up_seconds
        """Bucket -> seconds of each of its warm-up batches."""
        self.on_assembled: Callable[[float], None] | None = None
        """Is told the seconds that it took to make a batch's images one array."""
        self._network = network
        self._thread = thread

    @property
    def gpu_memory(self) -> GpuMemory | None:
        """As of the latest batch, or a second before; None on a CPU."""
        return self._network.gpu_memory

    async def infer(self, images: Sequence[Image]) -> list[Probabilities | Exception]:
        """One outcome per image, in order: its probabilities, or BadRow.

        Raises MemoryError where the device is out of memory, and whatever MXNet raises.
        """
        started = time.perf_counter()
        inputs = self._network.assemble(images)  # here, so that it may overlap another's compute
        if self.on_assembled is not None:
            self.on_assembled(time.perf_counter() - started)
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(self._thread, self._network.infer, inputs)
        return _outcomes(rows[: len(images)], len(self.model.classes))


@asynccontextmanager
async def load_engine(
    folder: pathlib.Path, device: str = "auto", threads: int = 1, max_batch_size: int | None = None
) -> AsyncIterator[GluonEngine]:
    """Verify, load and warm up the version in `folder`; close it on the way out.

    `max_batch_size` None: 16 on a CPU, where larger batches only make callers wait, 64 on a GPU.

    Raises BadModel, BadParams, DeviceUnavailable, MXNetUnavailable.
    """
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, thread_name_prefix="engine") as thread:
        model, network = await loop.run_in_executor(
            thread, _load, folder, device, threads, max_batch_size
        )
        try:
            yield GluonEngine(model, network, thread)
        finally:
            await loop.run_in_executor(thread, network.close)


class _Network:
    """The synchronous part, which lives on the engine's thread."""

    def __init__(
        self,
        mx: Any,
        model: Manifest,
        arrays: Arrays,
        device: Device,
        max_batch_size: int,
    ) -> None:
        self.device = device
        self.gpu_memory: GpuMemory | None = None
        self._look_at = 0.0
        self._mx = mx
        scale = 1 / (255 * np.asarray(model.normalisation.std, dtype=np.float64))
        shift = np.asarray(model.normalisation.mean) / np.asarray(model.normalisation.std)
        self._scale = scale.astype(np.float32).reshape(1, 3, 1, 1)
        self._shift = shift.astype(np.float32).reshape(1, 3, 1, 1)
        shared = self._with_parameters(model, arrays)
        self._by_bucket = {
            bucket: build(
                model.architecture,
                len(model.classes),
                prefix=shared.prefix,
                params=shared.collect_params(),
            )
            for bucket in _buckets(max_batch_size)
        }
        self.warm_up_seconds = {bucket: self._warm_up(bucket) for bucket in self._by_bucket}

    def assemble(self, images: Sequence[Image]) -> Inputs:
        """(pixel / 255 - mean) / std, padded with zeros to a bucket. NumPy only: on any thread."""
        bucket = next(bucket for bucket in self._by_bucket if bucket >= len(images))
        inputs = np.zeros((bucket, 3, SIDE, SIDE), dtype=np.float32)
        filled = inputs[: len(images)]
        np.multiply(np.stack(images).transpose(0, 3, 1, 2), self._scale, out=filled)
        filled -= self._shift
        return inputs

    def infer(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Softmax rows, float32 (bucket, classes), for what `assemble` made."""
        try:
            on_device = self._mx.nd.array(inputs, ctx=self.device.context)
            logits = self._by_bucket[len(inputs)](on_device).asnumpy()
        except self._mx.base.MXNetError as error:
            if _is_out_of_memory(str(error)):
                raise MemoryError(str(error)) from error
            raise
        self._look_at_memory(time.monotonic())
        return _softmax(logits)

    def _look_at_memory(self, now: float) -> None:
        """Asking the driver takes tens of microseconds, and only this thread may."""
        if self.device.name == "cpu" or now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY
        number = int(self.device.name.partition(":")[2])
        self.gpu_memory = GpuMemory(*self._mx.context.gpu_memory_info(number))

    def close(self) -> None:
        self._by_bucket.clear()
        self._mx.nd.waitall()  # or the process may hang at exit (apache/mxnet issue 8997)

    def _with_parameters(self, model: Manifest, arrays: Arrays) -> Any:
        network = build(model.architecture, len(model.classes))
        network.initialize(ctx=self.device.context)
        network(self._zeros(1))  # settles the shapes that Gluon leaves open
        parameters = network._collect_params_with_prefix()
        check_params(arrays, {name: p.shape for name, p in parameters.items()})
        for name, parameter in parameters.items():
            parameter.set_data(self._mx.nd.array(arrays[name], ctx=self.device.context))
        return network

    def _warm_up(self, bucket: int) -> tuple[float, ...]:
        """Compile the bucket's network and time it: the seconds of some batches."""
        network = self._by_bucket[bucket]
        if self.device.name == "cpu":
            network.optimize_for(
                self._zeros(bucket), backend="MKLDNN", static_alloc=True, static_shape=True
            )
        else:
            network.hybridize(static_alloc=True, static_shape=True)
        images = [np.zeros((SIDE, SIDE, 3), dtype=np.uint8)] * bucket
        seconds = []
        for _ in range(1 + WARM_UP_RUNS):
            started = time.perf_counter()
            self.infer(self.assemble(images))
            seconds.append(time.perf_counter() - started)
        return tuple(seconds[1:])  # the first compiles and tunes

    def _zeros(self, count: int) -> Any:
        return self._mx.nd.zeros((count, 3, SIDE, SIDE), ctx=self.device.context)


def _load(
    folder: pathlib.Path, device: str, threads: int, max_batch_size: int | None
) -> tuple[Manifest, _Network]:
    """Runs on the engine's thread."""
    model = manifest.read_version(folder)
    arrays = _read(folder / model.parameters.file, model.parameters)
    mx = load_mxnet(threads)
    chosen = choose(mx, device)
    size = max_batch_size or (16 if chosen.name == "cpu" else 64)
    return model, _Network(mx, model, arrays, chosen, size)


def _read(path: pathlib.Path, described: Parameters) -> Arrays:
    """The arrays of the file that the manifest describes. Raises BadModel, BadParams."""
    # First, so that nothing is read of a file of any other size.
    if path.is_file() and (size := path.stat().st_size) != described.bytes:
        raise _another(path, f"it has {size:,} bytes instead of {described.bytes:,}")
    arrays = read_params(path)
    if sha256(path) != described.sha256:
        raise _another(path, "its SHA-256 differs")
    return arrays


def _another(path: pathlib.Path, why: str) -> BadModel:
    return BadModel(
        f"{path} is not the file that {manifest.MANIFEST} names: {why}. "
        "Restore the file, or import it as a new version"
    )


def _is_out_of_memory(message: str) -> bool:
    """Whether a smaller batch may do better.

    CUDA's "illegal memory access" is something else, also where a cudaMalloc brings it to light:
    after it the GPU does not compute for this process any more.
    """
    return OUT_OF_MEMORY.search(message) is not None


def _buckets(max_batch_size: int) -> list[int]:
    """1, 2, 4, 8, ... and `max_batch_size` itself."""
    powers = [1 << power for power in range(max_batch_size.bit_length())]
    return sorted({*powers, max_batch_size})


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    exponentials: npt.NDArray[np.float32] = np.exp(logits - logits.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def _outcomes(rows: npt.NDArray[np.float32], classes: int) -> list[Probabilities | Exception]:
    shaped = rows.shape[1:] == (classes,)
    good = np.isfinite(rows).all(axis=1) if shaped else np.zeros(len(rows), dtype=bool)
    return [
        row if fine else BadRow("the network's output is not one finite number a class")
        for row, fine in zip(rows, good, strict=True)
    ]
