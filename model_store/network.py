"""A version as MXNet computes it. Synchronous; all but `assemble` is for the engine's thread alone.

A batch is padded to the next bucket: 1, 2, 4, 8, ... up to the largest batch. Each bucket has a
network object of its own, since switching shapes inside one costs more than a millisecond; they
share their parameters. Every bucket is warmed up and has answered sensibly before it serves.

`load` goes in steps. An engine that serves meanwhile computes batches between two of them, so
that none waits for longer than one step; the longest is the first run of the largest bucket.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from model_store.architectures import build
from model_store.device import Device
from model_store.manifest import BadModel, Manifest
from model_store.params import Arrays, check_params

SIDE = 32
WARM_UP_RUNS = 5
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
Rows: TypeAlias = npt.NDArray[np.float32]
"""(bucket, classes), a softmax each."""


class BadRow(ArithmeticError):
    """The network's output for this image is not one finite number a class."""


class Network:
    """Serves once `load` has been gone through to its end, and until `close`."""

    def __init__(self, mx: Any, model: Manifest, device: Device, max_batch_size: int) -> None:
        self.model = model
        self.warm_up_seconds: dict[int, tuple[float, ...]] = {}
        """Bucket -> seconds of each of its warm-up batches."""
        self._mx = mx
        self._device = device
        self._buckets = buckets(max_batch_size)
        self._by_bucket: dict[int, Any] = {}
        self._shared: Any = None
        scale = 1 / (255 * np.asarray(model.normalisation.std, dtype=np.float64))
        shift = np.asarray(model.normalisation.mean) / np.asarray(model.normalisation.std)
        self._scale = scale.astype(np.float32).reshape(1, 3, 1, 1)
        self._shift = shift.astype(np.float32).reshape(1, 3, 1, 1)

    def load(self, arrays: Arrays) -> Generator[None, None, None]:
        """Build, fill with `arrays`, and warm up: a step between two of its items.

        Raises BadParams, BadModel, UnknownArchitecture, and what MXNet raises.
        """
        yield from self._fill(arrays)
        for bucket in self._buckets:
            yield from self._warm_up(bucket)

    def assemble(self, images: Sequence[Image]) -> Inputs:
        """(pixel / 255 - mean) / std, padded with zeros to a bucket. NumPy only: on any thread."""
        bucket = next(bucket for bucket in self._buckets if bucket >= len(images))
        inputs = np.zeros((bucket, 3, SIDE, SIDE), dtype=np.float32)
        filled = inputs[: len(images)]
        np.multiply(np.stack(images).transpose(0, 3, 1, 2), self._scale, out=filled)
        filled -= self._shift
        return inputs

    def infer(self, inputs: Inputs) -> Rows:
        """Softmax rows, float32 (bucket, classes), for what `assemble` made."""
        try:
            on_device = self._mx.nd.array(inputs, ctx=self._device.context)
            logits = self._by_bucket[len(inputs)](on_device).asnumpy()
        except self._mx.base.MXNetError as error:
            if is_out_of_memory(str(error)):
                raise MemoryError(str(error)) from error
            raise
        return _softmax(logits)

    def close(self) -> None:
        """Free its memory."""
        self._by_bucket.clear()
        self._shared = None
        gc.collect()  # Gluon's blocks name each other; left to itself, any thread would free them
        self._mx.nd.waitall()  # or the process may hang at exit (apache/mxnet issue 8997)

    def _fill(self, arrays: Arrays) -> Generator[None, None, None]:
        """Build the network whose parameters the buckets share."""
        model, context = self.model, self._device.context
        self._shared = network = build(model.architecture, len(model.classes))
        yield
        network.infer_shape(self._zeros(1))  # settles those that Gluon leaves open
        parameters = network._collect_params_with_prefix()
        check_params(arrays, {name: p.shape for name, p in parameters.items()})
        yield
        for name, parameter in parameters.items():
            parameter.initialize(ctx=context)
            parameter.set_data(self._mx.nd.array(arrays[name], ctx=context))
            yield

    def _warm_up(self, bucket: int) -> Generator[None, None, None]:
        """Compile the bucket's network, see that it answers, and time it."""
        model, shared = self.model, self._shared
        network = self._by_bucket[bucket] = build(
            model.architecture,
            len(model.classes),
            prefix=shared.prefix,
            params=shared.collect_params(),
        )
        yield
        if self._device.name == "cpu":
            network.optimize_for(
                self._zeros(bucket), backend="MKLDNN", static_alloc=True, static_shape=True
            )
        else:
            network.hybridize(static_alloc=True, static_shape=True)
        yield
        images = list(_noise(bucket))
        self._probe(images)  # compiles and tunes, too
        yield
        seconds = []
        for _ in range(WARM_UP_RUNS):
            started = time.perf_counter()
            self.infer(self.assemble(images))
            seconds.append(time.perf_counter() - started)
            yield
        self.warm_up_seconds[bucket] = tuple(seconds)

    def _probe(self, images: Sequence[Image]) -> None:
        rows = self.infer(self.assemble(images))
        for outcome in outcomes(rows, len(self.model.classes)):
            if isinstance(outcome, Exception):
                raise BadModel(
                    f"{self.model.name} {self.model.version} computes nonsense: {outcome}. Train "
                    "it again, or import another file"
                )

    def _zeros(self, count: int) -> Any:
        return self._mx.nd.zeros((count, 3, SIDE, SIDE), ctx=self._device.context)


def is_out_of_memory(message: str) -> bool:
    """Whether a smaller batch may do better.

    CUDA's "illegal memory access" is something else, also where a cudaMalloc brings it to light:
    after it the GPU does not compute for this process any more.
    """
    return OUT_OF_MEMORY.search(message) is not None


def buckets(max_batch_size: int) -> list[int]:
    """1, 2, 4, 8, ... and `max_batch_size` itself."""
    powers = [1 << power for power in range(max_batch_size.bit_length())]
    return sorted({*powers, max_batch_size})


def outcomes(rows: npt.NDArray[np.float32], classes: int) -> list[Probabilities | Exception]:
    """Each of `rows`, or BadRow in its place."""
    shaped = rows.shape[1:] == (classes,)
    good = np.isfinite(rows).all(axis=1) if shaped else np.zeros(len(rows), dtype=bool)
    return [
        row if fine else BadRow("the network's output is not one finite number a class")
        for row, fine in zip(rows, good, strict=True)
    ]


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with np.errstate(invalid="ignore"):  # `outcomes` tells what is not finite
        exponentials: npt.NDArray[np.float32] = np.exp(logits - logits.max(axis=1, keepdims=True))
        exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def _noise(count: int) -> Image:
    """(count, 32, 32, 3): whatever is wrong with a network, it has a chance to show."""
    pixels: Image = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return pixels
