"""A version as MXNet computes it. Synchronous; all but `assemble` is for one and the same thread.

A batch is padded to the next bucket: 1, 2, 4, 8, ... up to the largest batch, or with tiles, where
each takes much memory, every second of them. Each bucket has a network object of its own, since
switching shapes inside one costs more than a millisecond; they share their parameters. Every bucket
is warmed up and has answered sensibly before it serves, and has given what the manifest recorded of
the probes.

`load` goes in steps. An engine that serves meanwhile computes batches between two of them, so
that none waits for longer than one step; the longest is the first run of the largest bucket.
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from model_store import probes, tiles
from model_store.architectures import build
from model_store.device import Device
from model_store.int8 import Quantisable, Ranges
from model_store.manifest import BadModel, Manifest
from model_store.params import Arrays, check_params
from model_store.precision import Precision

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
Forward: TypeAlias = Callable[[], Any]
"""float32 logits (bucket, classes), on the device, for what the bucket's input array holds."""


class BadRow(ArithmeticError):
    """The network's output for this image is not one finite number a class."""


class Network:
    """Serves once `load` has been gone through to its end, and until `close`."""

    def __init__(
        self, mx: Any, model: Manifest, device: Device, precision: Precision, max_batch_size: int
    ) -> None:
        self.model = model
        self.precision = precision
        self.warm_up_seconds: dict[int, tuple[float, ...]] = {}
        """Bucket -> seconds of each of its warm-up batches."""
        self._mx = mx
        self._device = device
        self._tiles = device.name == "cpu" and tiles.used(os.environ)
        self._buckets = buckets(max_batch_size, self._tiles)
        self._by_bucket: dict[int, Forward] = {}
        self._held: dict[int, Any] = {}
        """Bucket -> its input array, float32 (bucket, 3, 32, 32), on the device."""
        self._shared: Any = None
        self._temperature = model.temperature.value if model.temperature else 1.0
        scale = 1 / (255 * np.asarray(model.normalisation.std, dtype=np.float64))
        shift = np.asarray(model.normalisation.mean) / np.asarray(model.normalisation.std)
        self._scale, self._shift = _of_an_image(scale), _of_an_image(shift)

    def load(self, arrays: Arrays, beside: bool = True) -> Generator[None, None, None]:
        """Build, fill with `arrays`, and warm up: a step between two of its items. `beside` another
        that serves, steps are to be short; else all is to be done soon.

        Raises BadParams, BadModel, UnknownArchitecture, and what MXNet raises.
        """
        self._shared = yield from filled(self._mx, self.model, self._device.context, arrays)
        yield from self._build(beside)
        for bucket in self._buckets:
            yield from self._warm_up(bucket)

    def assemble(self, images: Sequence[Image]) -> Inputs:
        """(pixel / 255 - mean) / std, padded with zeros to a bucket. NumPy only: on any thread."""
        bucket = next(bucket for bucket in self._buckets if bucket >= len(images))
        inputs = np.zeros((bucket, 3, SIDE, SIDE), dtype=np.float32)
        normalised = np.stack(images).astype(np.float32)
        normalised *= self._scale
        normalised -= self._shift
        inputs[: len(images)] = normalised.transpose(0, 3, 1, 2)
        return inputs

    def infer(self, inputs: Inputs) -> Rows:
        """Softmax rows, float32 (bucket, classes), for what `assemble` made."""
        return self.probabilities(self.compute(inputs))

    def compute(self, inputs: Inputs) -> Rows:
        """What the network gives for what `assemble` made: logits, float32 (bucket, classes)."""
        try:
            self._held[len(inputs)]._sync_copyfrom(inputs)
            logits: Rows = self._by_bucket[len(inputs)]().asnumpy()
        except self._mx.base.MXNetError as error:
            if is_out_of_memory(str(error)):
                raise MemoryError(str(error)) from error
            raise
        return logits

    def probabilities(self, logits: Rows) -> Rows:
        """Their softmax, in the model's temperature. NumPy only: on any thread."""
        return _softmax(logits / self._temperature)

    def observe(self, batches: Sequence[Inputs]) -> dict[str, tuple[float, float]]:
        """The ranges for `manifest.Int8` that these bring about. For a CPU."""
        return Quantisable(self._mx, self._shared).observe(batches)

    def close(self) -> None:
        """Free its memory."""
        self._by_bucket.clear()
        self._held.clear()
        self._shared = None
        gc.collect()  # Gluon's blocks name each other; left to itself, any thread would free them
        self._mx.nd.waitall()  # or the process may hang at exit (apache/mxnet issue 8997)

    def _build(self, beside: bool) -> Generator[None, None, None]:
        """A network for each bucket, which share their parameters, in the precision."""
        for bucket in self._buckets:
            shape = (bucket, 3, SIDE, SIDE)
            self._held[bucket] = self._mx.nd.zeros(shape, ctx=self._device.context)
        if self.precision.name == "int8":
            assert self.model.int8 is not None  # or it would not have been chosen
            yield from self._quantise(self.model.int8.ranges, beside)
            return
        copies = {}
        for bucket in self._buckets:
            copies[bucket] = build(
                self.model.architecture,
                len(self.model.classes),
                prefix=self._shared.prefix,
                params=self._shared.collect_params(),
            )
            yield
        if self.precision.name == "fp16":
            for copy in copies.values():  # all are made: a copy cannot share what is cast already
                copy.cast("float16")  # but for BatchNorm's own: Gluon sees to it
        fuses = self._device.name == "cpu"
        for bucket, copy in copies.items():
            if fuses:
                self._fuse(copy, bucket)
                yield
                if bucket == self._buckets[0]:
                    fuses = self._computes_as_shared(copy, bucket)
                    yield
            if not fuses:
                copy.hybridize(static_alloc=True, static_shape=True)
            called = _in_half if self.precision.name == "fp16" else _Direct
            self._by_bucket[bucket] = called(copy, self._held[bucket])
            yield

    def _fuse(self, copy: Any, bucket: int) -> None:
        copy.optimize_for(
            self._held[bucket], backend="MKLDNN", static_alloc=True, static_shape=True
        )

    def _computes_as_shared(self, fused: Any, bucket: int) -> bool:
        """False for `cifar_resnet20_v2`, for one: MXNet adds wrongly when it fuses the
        addition with a convolution. Operators one by one are slower, and right."""
        inputs = self._mx.nd.array(self.assemble(list(_noise(bucket))), ctx=self._device.context)
        plain = self._shared(inputs).asnumpy()
        return bool(np.allclose(fused(inputs).asnumpy(), plain, rtol=1e-3, atol=1e-3))

    def _quantise(self, ranges: Ranges, beside: bool) -> Generator[None, None, None]:
        quantisable = Quantisable(self._mx, self._shared)
        yield
        for bucket in self._buckets:
            block = quantisable.block(ranges)
            if self._tiles and beside:
                for beginning in quantisable.beginnings(block):
                    beginning(self._held[bucket]).wait_to_read()
                    yield
            self._by_bucket[bucket] = _Direct(block, self._held[bucket])
            yield

    def _warm_up(self, bucket: int) -> Generator[None, None, None]:
        """See that the bucket's network answers, and as it did when it was added; time it."""
        images = list(_noise(bucket))
        self._probe(images)  # compiles and tunes, too
        yield
        if recorded := self.model.probes.get(self.precision.name):
            rows = self.infer(self.assemble(list(probes.repeated(probes.images(), bucket))))
            probes.check(rows, probes.repeated(recorded, bucket), self.precision.name)
            yield
        seconds = []
        for _ in range(WARM_UP_RUNS):
            started = time.perf_counter()
            self.infer(self.assemble(images))
            seconds.append(time.perf_counter() - started)
            yield
        self.warm_up_seconds[bucket] = tuple(seconds)

    def _probe(self, images: Sequence[Image]) -> None:
        try:
            rows = self.infer(self.assemble(images))
        except self._mx.base.MXNetError as error:
            if self.precision.name != "int8":
                raise
            why = str(error).strip().splitlines()[-1]
            raise BadModel(f"{self._called} cannot compute with its int8.ranges: {why}") from error
        for outcome in outcomes(rows, len(self.model.classes)):
            if isinstance(outcome, Exception):
                raise BadModel(
                    f"{self._called} computes nonsense: {outcome}. Train it again, or import "
                    "another file"
                )

    @property
    def _called(self) -> str:
        return f"{self.model.name} {self.model.version}"


class _Direct:
    """A network without what Gluon does in Python around each call: 0.2 ms, and ten times more
    chances to wait for the interpreter lock while the event loop has it."""

    def __init__(self, network: Any, held: Any) -> None:
        self._network = network
        self._held = held
        self._arguments: list[Any] | None = None

    def __call__(self) -> Any:
        if self._arguments is None:
            logits = self._network(self._held)  # compiles
            taken = self._network._cached_op_args
            self._arguments = [self._held if is_input else it.data() for is_input, it in taken]
            return logits
        return self._network._cached_op(*self._arguments)


def filled(mx: Any, model: Manifest, context: Any, arrays: Arrays) -> Generator[None, None, Any]:
    """Returns the network of `model` holding `arrays`, as Gluon has it, compiled for nothing.

    Its names do not depend on what else was built. Raises BadParams, UnknownArchitecture.
    """
    network = build(model.architecture, len(model.classes), prefix="net_")
    yield
    network.infer_shape(mx.nd.zeros((1, 3, SIDE, SIDE), ctx=context))  # which Gluon leaves open
    parameters = network._collect_params_with_prefix()
    check_params(arrays, {name: p.shape for name, p in parameters.items()})
    yield
    for name, parameter in parameters.items():
        array = mx.nd.array(arrays[name], ctx=context)
        if name.endswith("gamma") and parameter.grad_req == "null":
            array[:] = 1  # a scale held at 1: only some of MXNet's kernels pass over the array
        parameter.initialize(ctx=context)
        parameter.set_data(array)
        yield
    return network


def is_out_of_memory(message: str) -> bool:
    """Whether a smaller batch may do better.

    CUDA's "illegal memory access" is something else, also where a cudaMalloc brings it to light:
    after it the GPU does not compute for this process any more.
    """
    return OUT_OF_MEMORY.search(message) is not None


def buckets(max_batch_size: int, few: bool = False) -> list[int]:
    """1, 2, 4, 8, ... and `max_batch_size` itself; if `few`, every second of them."""
    powers = [1 << power for power in range(0, max_batch_size.bit_length(), 1 + few)]
    return sorted({*powers, max_batch_size})


def outcomes(rows: npt.NDArray[np.float32], classes: int) -> list[Probabilities | Exception]:
    """Each of `rows`, or BadRow in its place."""
    shaped = rows.shape[1:] == (classes,)
    good = np.isfinite(rows).all(axis=1) if shaped else np.zeros(len(rows), dtype=bool)
    return [
        row if fine else BadRow("the network's output is not one finite number a class")
        for row, fine in zip(rows, good, strict=True)
    ]


def _in_half(network: Any, held: Any) -> Forward:
    """Cast on the device, on the way in and out: the softmax is computed in 32 bits."""
    return lambda: network(held.astype("float16")).astype("float32")


def _of_an_image(of_channels: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Written out: three at a time NumPy would be slower."""
    return np.tile(of_channels.astype(np.float32), (SIDE, SIDE, 1))


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with np.errstate(invalid="ignore"):  # `outcomes` tells what is not finite
        exponentials: npt.NDArray[np.float32] = np.exp(logits - logits.max(axis=1, keepdims=True))
        exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def _noise(count: int) -> Image:
    """(count, 32, 32, 3): whatever is wrong with a network, it has a chance to show."""
    pixels: Image = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return pixels
