"""Graph: describes a network as a list of operators, without its parameters.

An operator is a dict with the keys of a node in the `-symbol.json` file that MXNet's `export`
writes: `op`, `name` and `attrs`. The values of `attrs` are strings. The key `names` contains the
names of the operator's inputs: the graph's input, other operators, and parameters. Because both
have the same format, `translation` converts graphs of symbol files and graphs built here with the
same code.
"""

from __future__ import annotations

from typing import Any

Node = dict[str, Any]

EPSILON = 1e-5
"""Number that Gluon's BatchNorm adds to the variance."""


class Graph:
    """Operators in the order of computation, and the shapes of all parameters.

    Each method except `channels` adds an operator, and returns the operator's name. The argument
    `x` is the name of the operator's input: the graph's input, or another operator.
    """

    def __init__(self, input_: str, channels: int) -> None:
        """
        Args:
            input_: Name of the graph's input: normalized images, (n, channels, height, width).
            channels: Number of channels of the input.
        """
        self.input = input_
        self.nodes: list[Node] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of each parameter, by name."""
        self._channels = {input_: channels}

    def channels(self, x: str) -> int:
        """Return the number of channels of an operator's output."""
        return self._channels[x]

    def convolution(
        self, x: str, name: str, channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> str:
        """Add a convolution without a bias. With a stride of 1, the output has the input's size."""
        weight = f"{name}.weight"
        self.shapes[weight] = (channels, self._channels[x] // groups, kernel, kernel)
        self._channels[name] = channels
        return self._add(
            "Convolution",
            name,
            [x, weight],
            kernel=(kernel, kernel),
            stride=(stride, stride),
            pad=(kernel // 2, kernel // 2),
            dilate=(1, 1),
            num_group=groups,
        )

    def batch_norm(self, x: str, name: str, scale: bool = True) -> str:
        """Add a batch normalization. Without `scale`, the parameter `gamma` has no effect."""
        names = [f"{name}.{each}" for each in ("gamma", "beta", "running_mean", "running_var")]
        self.shapes |= dict.fromkeys(names, (self._channels[x],))
        self._channels[name] = self._channels[x]
        return self._add("BatchNorm", name, [x, *names], eps=EPSILON, fix_gamma=not scale)

    def relu(self, x: str, name: str) -> str:
        """Add a ReLU."""
        self._channels[name] = self._channels[x]
        return self._add("Activation", name, [x], act_type="relu")

    def add(self, x: str, y: str, name: str) -> str:
        """Add an operator that computes the sum of two tensors."""
        self._channels[name] = self._channels[x]
        return self._add("elemwise_add", name, [x, y])

    def average(self, x: str, name: str) -> str:
        """Add an operator that computes the mean of each channel."""
        self._channels[name] = self._channels[x]
        return self._add("Pooling", name, [x], global_pool=True, pool_type="avg")

    def dense(self, x: str, name: str, units: int) -> str:
        """Add a fully connected layer with a bias."""
        self.shapes[f"{name}.weight"] = (units, self._channels[x])
        self.shapes[f"{name}.bias"] = (units,)
        return self._add("FullyConnected", name, [x, f"{name}.weight", f"{name}.bias"])

    def _add(self, op: str, name: str, names: list[str], **attributes: Any) -> str:
        texts = {key: str(value) for key, value in attributes.items()}
        self.nodes.append({"op": op, "name": name, "names": names, "attrs": texts})
        return name
