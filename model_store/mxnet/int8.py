"""Int8: builds a network that runs in 8-bit integers on a CPU.

The network is built from its fp32 parameters and a table of ranges. The range of a tensor is the
minimum and maximum of its values on some training images. The range defines which numbers the 8-bit
integers represent.

Convolutions read and write 8-bit tensors. A convolution is fused with the BatchNorm, the addition
and the ReLU that follow it. oneDNN, the library that runs MXNet's operators on a CPU, quantizes
the weights when they are first used, with one scale for each output channel. The first convolution,
the pooling and the last layer run in fp32. These three parts take 5 % of the fp32 computing time.
In int8, these parts would cause most of the loss of accuracy.

No graph and no quantized weights are stored. The graph and the quantized weights are derived from
the architecture and the parameters, so a version needs no second file that must be verified
(docs/decisions/0015-int8-beside-fp32.md).
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
    """The graph of a network that can be quantized.

    All methods must be called on the thread that uses the network.
    """

    def __init__(self, mx: Any, network: Any) -> None:
        """
        Args:
            mx: The module `mxnet`.
            network: Gluon block on the CPU with parameters. The block must have been made with a
                `prefix`. Without a prefix, the names of tensors depend on networks that were built
                earlier in the process.
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
        """Run the network in fp32, and return the range of each tensor.

        Args:
            batches: Normalized images, each batch float32 (n, 3, 32, 32).

        Raises:
            BadModel: MXNet's fused operators compute wrong results for this architecture.
        """
        first = self._mx.nd.array(batches[0])
        fused, plain = self._block(self._graph)(first), self._network(first)
        if not np.allclose(fused.asnumpy(), plain.asnumpy(), rtol=1e-3, atol=1e-3):
            raise BadModel(
                "this architecture cannot be quantized, because MXNet's fused operators compute "
                "wrong results for it. Serve the version in fp32"
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
        """Return a Gluon block that runs in int8 and shares the network's parameters.

        Args:
            ranges: Range of each tensor in `names`.

        Raises:
            BadModel: `ranges` does not fit the architecture.
        """
        if missing := [name for name in self.names if name not in ranges]:
            raise BadModel(
                f"int8.ranges: the range of {missing[0]} is missing "
                f"(number of missing ranges: {len(missing)})"
            )
        if unknown := [name for name in ranges if name not in self.names]:
            raise BadModel(f"int8.ranges: this architecture has no tensor {unknown[0]} to quantize")
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
            raise BadModel("this architecture cannot be quantized: serve the version in fp32")
        return self._block(symbol.get_backend_symbol(BACKEND))

    def prefixes(self, block: Any) -> Iterator[Any]:
        """Yield sub-networks from the input of `block` to each int8 convolution, in order.

        When oneDNN runs a convolution for the first time, it compiles the convolution. With AMX,
        Intel's matrix unit, this takes up to 0.1 s. Equal convolutions share the compiled code. If
        the sub-networks are run in order, each step compiles only one convolution.
        """
        inner = block(self._mx.sym.var(INPUT)).get_internals()
        for name in inner.list_outputs():
            if name.startswith(f"quantized_{FUSED_CONVOLUTION}") and name.endswith("_output"):
                yield self._block(inner[name])

    def _block(self, symbol: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MXNet warns that the input has no type yet
            block = self._mx.gluon.SymbolBlock(symbol, self._data, params=self._parameters)
        block.hybridize(static_alloc=True, static_shape=True)
        return block


def _first_convolution(graph: Any) -> str:
    names: list[str] = [node.name for node in graph.get_internals()]
    return next(name for name in names if name.startswith(FUSED_CONVOLUTION))


def _select(arrays: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: arrays[name] for name in names if name != INPUT}
