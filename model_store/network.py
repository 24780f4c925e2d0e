"""Network: the interface of a version's neural network, which runs in one lane."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from model_store.batch import Inputs, Rows


class Network(Protocol):
    """A version's network for one lane, which runs batches after `load` and before `close`.

    All methods of one network are called on the same thread.
    """

    def load(self, beside: bool) -> Generator[None, None, None]:
        """Load the network, in steps.

        Args:
            beside: Whether another version runs batches between the steps. True: loading is
                divided into shorter steps. False: loading takes less time in total.

        Raises BadModel or an exception of the library.
        """

    def compute(self, inputs: Inputs) -> Rows:
        """Compute the logits of a batch, float32 (bucket, classes).

        Raises MemoryError if the device is out of memory, or an exception of the library.
        """

    def close(self) -> None:
        """Free the memory of the network."""
