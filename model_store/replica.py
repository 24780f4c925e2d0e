"""Replica: a loaded copy of a version, which one lane runs.

A lane is a thread that runs one batch at a time. A replica loads the network, runs some warm-up
batches of every bucket (batch size), and checks the probabilities of the probe images. Probe images
are test images whose expected probabilities are in the manifest. If any of these steps fails, the
replica is not used.

Loading is divided into steps. Between two steps, the lane can run batches of the version that
is still active. The longest step is the first batch of the largest bucket.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

from model_store import probes
from model_store.batch import BatchFormat, Image, Rows, noise
from model_store.manifest import BackendName, BadModel, Manifest
from model_store.network import Network
from model_store.precision import Precision

WARM_UP_RUNS = 5
"""Number of batches of each bucket whose time is measured at warm-up."""


class Replica:
    """A loaded copy of a version, which runs batches after `load` and before `close`.

    All methods except the methods of `format` must be called on the lane's thread.
    """

    def __init__(
        self,
        network: Network,
        model: Manifest,
        precision: Precision,
        backend: BackendName,
        batch_format: BatchFormat,
        buckets: Sequence[int],
    ) -> None:
        """
        Args:
            network: Network that is not loaded yet, and that no other replica uses.
            model: The version's manifest.
            precision: Precision in which the network runs.
            backend: Name of the backend that runs the network.
            batch_format: Converts the network's input and output.
            buckets: Batch sizes that the network can run, in ascending order.
        """
        self.model = model
        self.precision = precision
        self.format = batch_format
        self.warm_up_seconds: dict[int, tuple[float, ...]] = {}
        """Bucket -> seconds of each warm-up batch of that size."""
        self.compute = network.compute
        """Function that computes logits, float32 (bucket, classes), for an input from `format`."""
        self._network = network
        self._backend: BackendName = backend
        self._buckets = buckets

    def load(self, beside: bool = True) -> Generator[None, None, None]:
        """Load the network and warm it up, in steps.

        Arguments and errors are as in `Network.load`. Also raises BadModel if the network computes
        invalid results or unexpected probabilities.
        """
        yield from self._network.load(beside)
        for bucket in self._buckets:
            yield from self._warm_up(bucket)

    def close(self) -> None:
        """Free the memory of the network."""
        self._network.close()

    def _warm_up(self, bucket: int) -> Generator[None, None, None]:
        """Check the network's results for batches of size `bucket`, and measure their time."""
        images = list(noise(bucket))
        self._first_run(images)
        yield
        if recorded := self.model.recorded_probes(self.precision.name, self._backend):
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
        """Compile the network by running a first batch, and check that its results are finite."""
        called = f"{self.model.name} {self.model.version}"
        try:
            rows = self._infer(images)
        except RuntimeError as error:
            if self.precision.name != "int8":
                raise
            reason = str(error).strip().splitlines()[-1].rstrip(".")
            raise BadModel(
                f"{called} cannot be computed in int8 with {self._backend}: {reason}. Calibrate "
                "the version again, or serve it in fp32"
            ) from error
        for result in self.format.check_rows(rows):
            if isinstance(result, Exception):
                raise BadModel(
                    f"{called} computes invalid results: {result}. Train the network again, or "
                    "import another file"
                )

    def _infer(self, images: Sequence[Image]) -> Rows:
        return self.format.probabilities(self.compute(self.format.assemble(images)))
