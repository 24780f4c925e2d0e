"""Int8: a network in 8-bit integers for CPUs, built from its parameters and a table of ranges.

Convolutions read and write 8-bit tensors; BatchNorm, addition and ReLU after them are fused into
them. oneDNN quantizes the weights when they are first used, with one scale for each output channel.
The range of a tensor is its minimum and maximum on some training images; it says which numbers the
8 bits stand for. The first convolution, the pooling and the last layer stay in 32 bits: together
they take a twentieth of the time and would cause most of the loss of accuracy.

Neither a graph nor integers are stored. The graph follows from the architecture and the integers
from the parameters, so there is no second file to trust (docs/decisions/0015-int8-beside-fp32.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from model_store.manifest import BadModel

INPUT = "data"
BACKEND = "MKLDNN_QUANTIZE"
NOT_QUANTIZED = ["Pooling", "_sg_mkldnn_fully_connected", "FullyConnected"]
FUSED_CONVOLUTION = "sg_mkldnn_conv"
MIN_WIDTH = 1e-3
"""Minimum width of a range."""

Ranges = Mapping[str, tuple[float, float]]


class Quantizable:
    """The graph of a network, which can be quantized. Use it on the network's thread."""

    def __init__(self, mx: Any, network: Any) -> None:
        """
        Args:
            mx: The module `mxnet`.
            network: A Gluon block on the CPU with parameters. It needs a prefix of its own:
                otherwise its names depend on networks that were built before.
        """
        self._mx = mx
        self._network = network
        self._parameters = network.collect_params()
        self._data = mx.sym.var(INPUT)
        self._graph = network(self._data).get_backend_symbol(BACKEND)
        arrays = {name: parameter.data() for name, parameter in self._parameters.items()}
        self._arguments = _select(arrays, self._graph.list_arguments())
        self._states = _select(arrays, self._graph.list_auxiliary_states())
        self._quantized, _, _, self._collector = mx.contrib.quantization.quantize_graph(
            self._graph,
            self._arguments,
            self._states,
            excluded_sym_names=[_first_convolution(self._graph)],
            excluded_op_names=NOT_QUANTIZED,
            calib_mode="naive",
            quantized_dtype="auto",
            quantize_mode="full",
            logger=None,
        )
        self.names: tuple[str, ...] = tuple(self._collector.include_layer)
        """Names of the tensors whose ranges are needed."""

    def observe(self, batches: Sequence[Any]) -> dict[str, tuple[float, float]]:
        """The ranges of all tensors, observed in fp32.

        Args:
            batches: float32 (n, 3, 32, 32), normalized.

        Raises:
            BadModel: MXNet's fused operators are wrong for this architecture.
        """
        first = self._mx.nd.array(batches[0])
        fused, plain = self._block(self._graph)(first), self._network(first)
        if not np.allclose(fused.asnumpy(), plain.asnumpy(), rtol=1e-3, atol=1e-3):
            raise BadModel(
                "this architecture cannot be quantized: MXNet's fused operators compute something "
                "else for it. Serve it in fp32"
            )
        inner = self._graph.get_internals()
        outputs = self._block(self._mx.sym.Group([inner[name] for name in self.names]))
        low = dict.fromkeys(self.names, np.inf)
        high = dict.fromkeys(self.names, -np.inf)
        for batch in batches:
            tensors = outputs(self._mx.nd.array(batch))
            for name, values in zip(self.names, tensors, strict=True):
                low[name] = min(low[name], float(values.min().asscalar()))
                high[name] = max(high[name], float(values.max().asscalar()))
        return {name: (low[name], max(high[name], low[name] + MIN_WIDTH)) for name in low}

    def block(self, ranges: Ranges) -> Any:
        """A Gluon block in int8 that shares the parameters. Raises BadModel for wrong `ranges`."""
        if missing := [name for name in self.names if name not in ranges]:
            raise BadModel(f"int8.ranges: none for {missing[0]} ({len(missing)} are missing)")
        if unknown := [name for name in ranges if name not in self.names]:
            raise BadModel(f"int8.ranges: this architecture has no {unknown[0]} to quantize")
        self._collector.min_max_dict = dict(ranges)
        symbol, arguments, _ = self._mx.contrib.quantization.calib_graph(
            self._quantized,
            self._arguments,
            self._states,
            self._collector,
            calib_mode="naive",
            quantized_dtype="auto",
            logger=None,
        )
        if not set(arguments) <= set(self._parameters):
            raise BadModel("this architecture cannot be quantized: serve it in fp32")
        return self._block(symbol.get_backend_symbol(BACKEND))

    def prefixes(self, block: Any) -> Iterator[Any]:
        """Blocks that end after the first int8 convolution of `block`, after the second, and so on.

        oneDNN compiles a convolution when it first runs, which takes up to 0.1 s with AMX, and
        reuses the code for equal convolutions. Running the prefixes one by one divides that time
        into steps.
        """
        inner = block(self._mx.sym.var(INPUT)).get_internals()
        for name in inner.list_outputs():
            if name.startswith(f"quantized_{FUSED_CONVOLUTION}") and name.endswith("_output"):
                yield self._block(inner[name])

    def _block(self, symbol: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the input has no type yet
            block = self._mx.gluon.SymbolBlock(symbol, self._data, params=self._parameters)
        block.hybridize(static_alloc=True, static_shape=True)
        return block


def _first_convolution(graph: Any) -> str:
    names: list[str] = [node.name for node in graph.get_internals()]
    return next(name for name in names if name.startswith(FUSED_CONVOLUTION))


def _select(arrays: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: arrays[name] for name in names if name != INPUT}
