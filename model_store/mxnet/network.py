"""Network: computes the logits of a version with MXNet.

All methods of one network must be called on the same thread. MXNet compiles a network for one batch
size, and changing the batch size takes more than a millisecond. Therefore, there is one MXNet
network for each bucket (batch size). These networks share their parameters.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

import numpy as np

from model_store.batch import SIDE, Inputs, Rows
from model_store.device import Device
from model_store.manifest import Manifest, PrecisionName
from model_store.mxnet import amx
from model_store.mxnet.architectures import build
from model_store.mxnet.device import context
from model_store.mxnet.int8 import Quantizable, Ranges
from model_store.params import Arrays, check_params

# Messages of CUDA, of cuBLAS and cuDNN, of MXNet on a CPU, and of C++.
OUT_OF_MEMORY = re.compile(
    r"out of memory|_STATUS_ALLOC_FAILED|failed to allocate cpu memory|memory allocation failed"
    r"|bad_alloc",
    re.IGNORECASE,
)

Forward: TypeAlias = Callable[[], Any]
"""Computes float32 logits (bucket, classes) on the device from the bucket's input array."""


class Network:
    """A version's network, which runs batches after `load` and before `close`."""

    def __init__(
        self,
        mx: Any,
        model: Manifest,
        device: Device,
        precision: PrecisionName,
        buckets: Sequence[int],
        arrays: Arrays,
    ) -> None:
        """
        Args:
            mx: The module `mxnet`.
            model: Manifest with the architecture, the classes and the ranges for int8.
            device: Device that runs the network.
            precision: Precision that `precision.choose` returned for this version and device.
            buckets: Batch sizes that the network can run, in ascending order.
            arrays: Parameters by name.
        """
        self._mx = mx
        self._model = model
        self._device = device
        self._context = context(mx, device)
        self._precision = precision
        self._buckets = buckets
        self._arrays: Arrays | None = arrays
        self._forward: dict[int, Forward] = {}
        self._inputs: dict[int, Any] = {}
        """Bucket -> input array on the device, float32 (bucket, 3, 32, 32)."""
        self._shared: Any = None
        """MXNet network whose parameters the networks of all buckets share."""

    def load(self, beside: bool = True) -> Generator[None, None, None]:
        """Build the networks, in steps.

        Args:
            beside: Whether another version runs batches between the steps. True: loading is
                divided into shorter steps. False: loading takes less time in total.

        Raises:
            BadParams, BadModel, UnknownArchitecture, MXNetError.
        """
        assert self._arrays is not None  # a network is loaded once
        self._shared = yield from filled(self._mx, self._model, self._context, self._arrays)
        self._arrays = None
        for bucket in self._buckets:
            shape = (bucket, 3, SIDE, SIDE)
            self._inputs[bucket] = self._mx.nd.zeros(shape, ctx=self._context)
        if self._precision == "int8":
            assert self._model.int8 is not None  # otherwise int8 would not have been chosen
            yield from self._quantize(self._model.int8.ranges, beside)
        else:
            yield from self._build()

    def compute(self, inputs: Inputs) -> Rows:
        """Compute the logits of a batch, float32 (bucket, classes).

        Raises:
            MemoryError: The device is out of memory.
            MXNetError: MXNet failed.
        """
        try:
            self._inputs[len(inputs)]._sync_copyfrom(inputs)
            logits: Rows = self._forward[len(inputs)]().asnumpy()
        except self._mx.base.MXNetError as error:
            if is_out_of_memory(str(error)):
                raise MemoryError(str(error)) from error
            raise
        return logits

    def close(self) -> None:
        """Free the memory of the network."""
        self._forward.clear()
        self._inputs.clear()
        self._shared = None
        # MXNet's blocks form reference cycles, which must be collected on this thread.
        gc.collect()
        self._mx.nd.waitall()  # otherwise the process may hang at exit (apache/mxnet issue 8997)

    def _build(self) -> Generator[None, None, None]:
        """Build the network of each bucket in fp32 or fp16, in steps."""
        copies = {}
        for bucket in self._buckets:
            copies[bucket] = build(
                self._model.architecture,
                len(self._model.classes),
                prefix=self._shared.prefix,
                params=self._shared.collect_params(),
            )
            yield
        if self._precision == "fp16":
            # All copies must exist before the cast: a new copy cannot share cast parameters.
            for copy in copies.values():
                copy.cast("float16")  # MXNet keeps the parameters of BatchNorm in fp32
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
            forward = _in_half if self._precision == "fp16" else _Direct
            self._forward[bucket] = forward(copy, self._inputs[bucket])
            yield

    def _fuse(self, copy: Any, bucket: int) -> None:
        copy.optimize_for(
            self._inputs[bucket], backend="MKLDNN", static_alloc=True, static_shape=True
        )

    def _computes_as_shared(self, fused: Any, bucket: int) -> bool:
        """Whether the network with fused operators computes the same results as without fusion.

        For some architectures, such as `cifar_resnet20_v2`, MXNet's fused addition and convolution
        computes wrong results. The operators of these architectures are not fused, which is slower.
        """
        random = np.random.default_rng(0).standard_normal((bucket, 3, SIDE, SIDE), np.float32)
        inputs = self._mx.nd.array(random, ctx=self._context)
        plain = self._shared(inputs).asnumpy()
        return bool(np.allclose(fused(inputs).asnumpy(), plain, rtol=1e-3, atol=1e-3))

    def _quantize(self, ranges: Ranges, beside: bool) -> Generator[None, None, None]:
        """Build the network of each bucket in int8, in steps."""
        quantizable = Quantizable(self._mx, self._shared)
        yield
        for bucket in self._buckets:
            block = quantizable.block(ranges)
            if beside and amx.enabled(os.environ):
                for prefix in quantizable.prefixes(block):
                    prefix(self._inputs[bucket]).wait_to_read()
                    yield
            self._forward[bucket] = _Direct(block, self._inputs[bucket])
            yield


class _Direct:
    """Runs a network by calling its compiled graph directly.

    Calling the MXNet network itself would run 0.2 ms more of Python code. That code may have to
    wait for the interpreter lock while the event loop is busy.
    """

    def __init__(self, network: Any, inputs: Any) -> None:
        self._network = network
        self._inputs = inputs
        self._arguments: list[Any] | None = None

    def __call__(self) -> Any:
        if self._arguments is None:
            logits = self._network(self._inputs)  # the first call compiles the graph
            arguments = self._network._cached_op_args
            self._arguments = [
                self._inputs if is_input else parameter.data() for is_input, parameter in arguments
            ]
            return logits
        return self._network._cached_op(*self._arguments)


def _in_half(network: Any, inputs: Any) -> Forward:
    """Return a function that runs a network in float16 and returns float32 logits.

    All casts run on the device.
    """
    return lambda: network(inputs.astype("float16")).astype("float32")


def filled(mx: Any, model: Manifest, context: Any, arrays: Arrays) -> Generator[None, None, Any]:
    """Build an MXNet network with parameters, in steps. The generator returns a Gluon block.

    The names of the network's operators do not depend on other networks in the process.

    Args:
        mx: The module `mxnet`.
        model: Manifest with the architecture and the classes.
        context: MXNet's context of the device.
        arrays: Parameters by name.

    Raises:
        BadParams: The parameters do not fit the architecture.
        UnknownArchitecture: There is no such architecture.
    """
    network = build(model.architecture, len(model.classes), prefix="net_")
    yield
    network.infer_shape(mx.nd.zeros((1, 3, SIDE, SIDE), ctx=context))  # sets all shapes
    parameters = network._collect_params_with_prefix()
    check_params(arrays, {name: p.shape for name, p in parameters.items()})
    yield
    for name, parameter in parameters.items():
        array = mx.nd.array(arrays[name], ctx=context)
        if name.endswith("gamma") and parameter.grad_req == "null":
            array[:] = 1  # the scale is fixed at 1, but some of MXNet's kernels read the array
        parameter.initialize(ctx=context)
        parameter.set_data(array)
        yield
    return network


def build_filled(mx: Any, model: Manifest, context: Any, arrays: Arrays) -> Any:
    """Return an MXNet network with parameters. Arguments and errors are as in `filled`."""
    steps = filled(mx, model, context, arrays)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def is_out_of_memory(message: str) -> bool:
    """Whether an error message says that memory ran out. If so, a smaller batch may succeed.

    CUDA's "illegal memory access" is a different error, even if cudaMalloc reports it. After that
    error, the GPU computes nothing more for this process.
    """
    return OUT_OF_MEMORY.search(message) is not None
