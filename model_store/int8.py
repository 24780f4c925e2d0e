"""The same network in 8-bit integers, for CPUs: rebuilt from its parameters and a table of ranges.

Convolutions, with the BatchNorm, addition and ReLU behind them fused into them, read and write
8-bit tensors; weights are quantised by oneDNN, one scale an output channel, when they are first
used. What a tensor's 8 bits stand for is its range: the least and greatest value seen on some
training images. The first convolution, the pooling and the last layer stay in 32 bits: together
they cost a twentieth of the time and most of the accuracy that would be lost.

Nothing else is stored: no graph and no integers. The graph follows from the architecture, the
integers follow from the parameters, so that there is no second file to trust
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
IN_32_BITS = ["Pooling", "_sg_mkldnn_fully_connected", "FullyConnected"]
FUSED_CONVOLUTION = "sg_mkldnn_conv"
NARROWEST = 1e-3

Ranges = Mapping[str, tuple[float, float]]


class Quantisable:
    """A network on the CPU, its parameters set, seen as a graph that can be quantised.

    Belongs to the thread that owns MXNet, as the network does. The network's names must not depend
    on what was built before it: give it a prefix of its own.
    """

    def __init__(self, mx: Any, network: Any) -> None:
        self._mx = mx
        self._network = network
        self._parameters = network.collect_params()
        self._data = mx.sym.var(INPUT)
        self._graph = network(self._data).get_backend_symbol(BACKEND)
        held = {name: parameter.data() for name, parameter in self._parameters.items()}
        self._arguments = _of(held, self._graph.list_arguments())
        self._states = _of(held, self._graph.list_auxiliary_states())
        self._quantised, _, _, self._collector = mx.contrib.quantization.quantize_graph(
            self._graph,
            self._arguments,
            self._states,
            excluded_sym_names=[_first_convolution(self._graph)],
            excluded_op_names=IN_32_BITS,
            calib_mode="naive",
            quantized_dtype="auto",
            quantize_mode="full",
            logger=None,
        )
        self.names: tuple[str, ...] = tuple(self._collector.include_layer)
        """Of the outputs whose ranges are needed."""

    def observe(self, batches: Sequence[Any]) -> dict[str, tuple[float, float]]:
        """The ranges seen on `batches` of normalised float32 (n, 3, 32, 32) arrays, computed in 32
        bits. Raises BadModel where MXNet fuses this architecture wrongly, as `network` knows."""
        first = self._mx.nd.array(batches[0])
        fused, plain = self._block(self._graph)(first), self._network(first)
        if not np.allclose(fused.asnumpy(), plain.asnumpy(), rtol=1e-3, atol=1e-3):
            raise BadModel(
                "this architecture cannot be quantised: fused for it, MXNet's operators compute "
                "something else. It is served in fp32"
            )
        inner = self._graph.get_internals()
        outputs = self._block(self._mx.sym.Group([inner[name] for name in self.names]))
        least = dict.fromkeys(self.names, np.inf)
        greatest = dict.fromkeys(self.names, -np.inf)
        for batch in batches:
            seen = outputs(self._mx.nd.array(batch))
            for name, values in zip(self.names, seen, strict=True):
                least[name] = min(least[name], float(values.min().asscalar()))
                greatest[name] = max(greatest[name], float(values.max().asscalar()))
        return {name: (least[name], max(greatest[name], least[name] + NARROWEST)) for name in least}

    def block(self, ranges: Ranges) -> Any:
        """A Gluon block that computes in 8 bits and shares the parameters. Raises BadModel."""
        if missing := [name for name in self.names if name not in ranges]:
            raise BadModel(f"int8.ranges: none for {missing[0]} ({len(missing)} are missing)")
        if unknown := [name for name in ranges if name not in self.names]:
            raise BadModel(f"int8.ranges: this architecture has no {unknown[0]} to quantise")
        self._collector.min_max_dict = dict(ranges)
        symbol, arguments, _ = self._mx.contrib.quantization.calib_graph(
            self._quantised,
            self._arguments,
            self._states,
            self._collector,
            calib_mode="naive",
            quantized_dtype="auto",
            logger=None,
        )
        if not set(arguments) <= set(self._parameters):
            raise BadModel("this architecture cannot be quantised: serve it in fp32")
        return self._block(symbol.get_backend_symbol(BACKEND))

    def beginnings(self, block: Any) -> Iterator[Any]:
        """What such a block begins with: all up to its first convolution in 8 bits, its second, and
        so on. oneDNN makes code for each as it first runs, with tiles in up to 0.1 s, and keeps it
        for whoever has the same: who runs one after the other can be interrupted."""
        inner = block(self._mx.sym.var(INPUT)).get_internals()
        for name in inner.list_outputs():
            if name.startswith(f"quantized_{FUSED_CONVOLUTION}") and name.endswith("_output"):
                yield self._block(inner[name])

    def _block(self, symbol: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an input has no type yet
            made = self._mx.gluon.SymbolBlock(symbol, self._data, params=self._parameters)
        made.hybridize(static_alloc=True, static_shape=True)
        return made


def _first_convolution(graph: Any) -> str:
    names: list[str] = [node.name for node in graph.get_internals()]
    return next(name for name in names if name.startswith(FUSED_CONVOLUTION))


def _of(held: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: held[name] for name in names if name != INPUT}
