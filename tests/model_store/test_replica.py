"""A replica loads its network, warms it up and checks what it computes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest

from model_store.batch import BatchFormat
from model_store.manifest import BadModel, Manifest, PrecisionName
from model_store.precision import Precision
from model_store.replica import WARM_UP_RUNS, Replica
from tests.model_store.test_manifest import GOOD

BUCKETS = (1, 2)
MODEL = Manifest.model_validate(GOOD)


class FakeNetwork:
    """Computes logits by a function, and records the number of batches."""

    def __init__(self, value: Callable[[], float]) -> None:
        self.value = value
        self.loaded = self.closed = False
        self.batches: list[int] = []

    def load(self, beside: bool) -> Generator[None, None, None]:
        yield
        self.loaded = True

    def compute(self, inputs: Any) -> Any:
        assert self.loaded
        self.batches.append(len(inputs))
        return np.full((len(inputs), 2), self.value(), dtype=np.float32)

    def close(self) -> None:
        self.closed = True


def replica(network: FakeNetwork, precision: PrecisionName = "fp32") -> Replica:
    chosen = Precision(precision, "a test")
    return Replica(network, MODEL, chosen, "mxnet", BatchFormat(MODEL, BUCKETS), BUCKETS)


def fails() -> float:
    raise RuntimeError("first line\nno range for layer 3")


def test_replica_measures_every_bucket() -> None:
    """A batch of each bucket runs once to compile it, and `WARM_UP_RUNS` times to measure it."""
    network = FakeNetwork(lambda: 0.0)
    loaded = replica(network)
    steps = sum(1 for _ in loaded.load())
    assert steps > len(BUCKETS) * WARM_UP_RUNS  # the lane can compute between two batches
    runs = {bucket: len(seconds) for bucket, seconds in loaded.warm_up_seconds.items()}
    assert runs == dict.fromkeys(BUCKETS, WARM_UP_RUNS)
    assert sorted(network.batches) == [1] * (WARM_UP_RUNS + 1) + [2] * (WARM_UP_RUNS + 1)
    loaded.close()
    assert network.closed


def test_replica_rejects_results_that_are_not_finite() -> None:
    """The message names the version."""
    with pytest.raises(BadModel, match="pets 3 computes invalid results"):
        list(replica(FakeNetwork(lambda: float("nan"))).load())


def test_replica_blames_the_calibration_if_int8_cannot_be_computed() -> None:
    """The message has the last line of the error; in other precisions the error is as it was."""
    with pytest.raises(BadModel, match="int8 with mxnet: no range for layer 3"):
        list(replica(FakeNetwork(fails), "int8").load())
    with pytest.raises(RuntimeError, match="first line"):
        list(replica(FakeNetwork(fails)).load())
