"""Replica: the copy of a version that one lane computes.

A replica loads its network, warms up every bucket, and compares the probabilities of the probe
images with those in the manifest. It serves only if all of that succeeds.

Loading is divided into steps, so that the lane can compute batches of the version that serves
between two steps. The longest step is the first run of the largest bucket.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

from model_store import probes
from model_store.batch import BatchFormat, Image, Inputs, Rows, noise
from model_store.manifest import BadModel, Manifest
from model_store.network import Network
from model_store.params import Arrays
from model_store.precision import Precision

WARM_UP_RUNS = 5


class Replica:
    """Computes batches after `load` has run to its end, and until `close`.

    All methods except those of `format` are called on the lane's thread.
    """

    def __init__(
        self, network: Network, model: Manifest, precision: Precision, buckets: Sequence[int]
    ) -> None:
        """
        Args:
            network: Not loaded yet; used by this replica only.
            model: The version's manifest.
            precision: In which the network computes.
            buckets: Batch sizes that the network can compute, in increasing order.
        """
        self.model = model
        self.precision = precision
        self.format = BatchFormat(model, buckets)
        self.warm_up_seconds: dict[int, tuple[float, ...]] = {}
        """Bucket -> seconds of each of its warm-up batches."""
        self.compute = network.compute
        """Computes logits, float32 (bucket, classes), for an input that `format` assembled."""
        self._network = network
        self._buckets = buckets

    def load(self, arrays: Arrays, beside: bool = True) -> Generator[None, None, None]:
        """Load the network and warm it up, in steps. Arguments and errors as in `Network.load`."""
        yield from self._network.load(arrays, beside)
        for bucket in self._buckets:
            yield from self._warm_up(bucket)

    def observe(self, batches: Sequence[Inputs]) -> dict[str, tuple[float, float]]:
        """Ranges of the tensors for `manifest.Int8`, observed on `batches`. For a CPU."""
        return self._network.observe(batches)

    def close(self) -> None:
        """Free its memory."""
        self._network.close()

    def _warm_up(self, bucket: int) -> Generator[None, None, None]:
        """Check that the bucket's results are plausible and as recorded, and measure its time."""
        images = list(noise(bucket))
        self._first_run(images)
        yield
        if recorded := self.model.probes.get(self.precision.name):
            rows = self._infer(list(probes.repeated(probes.images(), bucket)))
            probes.check(rows, probes.repeated(recorded, bucket), self.precision.name)
            yield
        seconds = []
        for _ in range(WARM_UP_RUNS):
            started = time.perf_counter()
            self._infer(images)
            seconds.append(time.perf_counter() - started)
            yield
        self.warm_up_seconds[bucket] = tuple(seconds)

    def _first_run(self, images: Sequence[Image]) -> None:
        """Compile the bucket's network and check that it computes finite numbers."""
        called = f"{self.model.name} {self.model.version}"
        try:
            rows = self._infer(images)
        except RuntimeError as error:
            if self.precision.name != "int8":
                raise
            reason = str(error).strip().splitlines()[-1]
            raise BadModel(f"{called} cannot compute with its int8.ranges: {reason}") from error
        for result in self.format.check_rows(rows):
            if isinstance(result, Exception):
                raise BadModel(
                    f"{called} computes invalid results: {result}. Train it again, or import "
                    "another file"
                )

    def _infer(self, images: Sequence[Image]) -> Rows:
        return self.format.probabilities(self.compute(self.format.assemble(images)))
