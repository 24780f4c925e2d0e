"""Damages `.onnx` files and reads them: python -m tests.model_store.onnx.fuzz_onnx --seconds 600

Checks the guarantees of `model_store.onnx.file` with any file: reading it returns a checked file or
raises BadOnnx, and takes little time and memory. ONNX Runtime then loads a file that was
accepted and computes, or raises an exception. If it computes, the output has the shape that was
found, and the result for an image does not depend on the other images. The same seed gives the
same files. The file that is read is kept if a guarantee is broken or if the process crashes.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store.onnx.file import BadOnnx, OnnxFile, read_onnx
from model_store.onnx.operators import OPERATORS
from tests.model_store.bounds import bounded
from tests.model_store.fuzz_params import IN_MEMORY, damaged
from tests.model_store.onnx.networks import numpy_helper, onnx, small, vit
from tests.model_store.onnx.random_graphs import RandomGraph

onnxruntime = pytest.importorskip("onnxruntime")

SECONDS = 2.0  # of CPU, for a file of at most 200 KiB that takes about 10 ms
SLACK = 1 << 22  # bytes beyond 40 times the file's size: decoded fields are Python objects
MAX_RUN_BYTES = 1 << 24  # files that need more memory are not run
MAX_RUN_OPERATIONS = 10**7
NUMBERS = [-(1 << 63), -(1 << 31), -1, 0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 64, 255, 4096, 1 << 20]
NUMBERS += [(1 << 24) - 1, 1 << 24, (1 << 31) - 2, (1 << 31) - 1, 1 << 31, (1 << 63) - 1]


def sound_files() -> list[bytes]:
    """Small files with many operators."""
    tiny = [small(opset) for opset in (13, 17, 21)]
    grown = []
    for seed in range(60):
        graph = RandomGraph(seed)
        graph.grow(10)
        names = [node.output[0] for node in graph.nodes]
        fitting = [name for name in names if _is_output(graph, name)]
        if fitting:
            grown.append(graph.file(fitting[-1]))
    return [*tiny, *grown, vit(32, width=3, depth=1, heads=3, classes=10)]


def _is_output(graph: RandomGraph, name: str) -> bool:
    tensor = graph.walk.values[name]
    return tensor.batch_axis == 0 and tensor.rank > 1 and tensor.dtype == "f4"


def changed(dice: random.Random, sound: bytes) -> bytes:
    """The file with one to four changes to its graph."""
    model = onnx.load_from_string(sound)
    for _ in range(dice.choice((1, 1, 2, 3, 4))):
        change = dice.choice(CHANGES)
        # The graph has nothing of the kind, or an earlier change made it invalid.
        with contextlib.suppress(LookupError, OverflowError, TypeError, ValueError):
            change(dice, model)
    return bytes(model.SerializeToString())


def _node(dice: random.Random, model: Any) -> Any:
    return dice.choice(model.graph.node)


def _number(dice: random.Random, number: int) -> int:
    return dice.choice((number + 1, number - 1, number * 2, dice.choice(NUMBERS)))


def _attribute(dice: random.Random, model: Any) -> None:
    attribute = dice.choice(_node(dice, model).attribute)
    if attribute.ints:
        at = dice.randrange(len(attribute.ints))
        attribute.ints[at] = _number(dice, attribute.ints[at])
    else:
        attribute.i = _number(dice, attribute.i)


def _new_attribute(dice: random.Random, model: Any) -> None:
    node = _node(dice, model)
    names = [*OPERATORS[node.op_type].attributes]
    value = dice.choice([_number(dice, 1), [_number(dice, 1) for _ in range(dice.randrange(1, 5))]])
    node.attribute.append(onnx.helper.make_attribute(dice.choice(names), value))


def _operator(dice: random.Random, model: Any) -> None:
    _node(dice, model).op_type = dice.choice([*OPERATORS, "Resize", "If", "Tile"])


def _input(dice: random.Random, model: Any) -> None:
    node, other = _node(dice, model), _node(dice, model)
    names = [*other.input, *other.output, dice.choice(model.graph.initializer).name, ""]
    if dice.random() < 0.8:
        node.input[dice.randrange(len(node.input))] = dice.choice(names)
    else:
        node.input.append(dice.choice(names))


def _remove(dice: random.Random, model: Any) -> None:
    node = _node(dice, model)
    dice.choice([node.attribute, node.input, node.output, model.graph.node]).pop()


def _repeat(dice: random.Random, model: Any) -> None:
    model.graph.node.append(_node(dice, model))
    if dice.random() < 0.8:
        model.graph.node[-1].output[0] = "again"
        model.graph.output[0].name = "again"


def _parameter(dice: random.Random, model: Any) -> None:
    """Changes a shape, with a payload that fits, or the integers of a shape."""
    tensor = dice.choice(model.graph.initializer)
    array = numpy_helper.to_array(tensor)
    if array.dtype.kind == "i" and array.size and dice.random() < 0.7:
        array = array.copy()
        at = dice.randrange(array.size)
        info = np.iinfo(array.dtype)
        array.flat[at] = min(info.max, max(info.min, _number(dice, int(array.flat[at]))))
    else:
        dims = [*array.shape]
        at = dice.randrange(len(dims))
        dims[at] = max(1, min(64, _number(dice, dims[at])))
        array = np.resize(array, dims)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _type(dice: random.Random, model: Any) -> None:
    dice.choice(model.graph.initializer).data_type = dice.randrange(20)


def _image(dice: random.Random, model: Any) -> None:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[dice.randrange(len(dims))].dim_value = _number(dice, 8)


def _output(dice: random.Random, model: Any) -> None:
    model.graph.output[0].name = _node(dice, model).output[0]


def _version(dice: random.Random, model: Any) -> None:
    model.opset_import[0].version = dice.randint(10, 24)


CHANGES = (
    *(_attribute, _attribute, _new_attribute, _operator, _input, _input, _remove, _repeat),
    *(_parameter, _parameter, _parameter, _type, _image, _output, _version),
)


def examine(path: Path) -> OnnxFile | None:
    """The checked file. None: it is rejected. Any exception but BadOnnx breaks a guarantee."""
    size = path.stat().st_size
    found, refusal = None, ""
    with bounded(size, SECONDS, 40 * size + SLACK):
        try:
            found = read_onnx(path)
        except BadOnnx as error:
            refusal = str(error)
    if found is None:
        assert refusal.startswith(f"{path}: ") and len(refusal) < len(str(path)) + 2000
    else:
        assert found.content == path.read_bytes()
    return found


def run(found: OnnxFile) -> str:
    """Loads the file in ONNX Runtime, computes, and says how far it came."""
    if found.live_bytes > MAX_RUN_BYTES or found.fixed_bytes > MAX_RUN_BYTES:
        return "too large to run"
    if found.multiply_adds > MAX_RUN_OPERATIONS:
        return "too slow to run"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            found.content, options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # noqa: BLE001 (its exceptions have no common class)
        return "not loaded"
    count = found.input.shape[0] or 3
    shape = (count, *(length or 1 for length in found.input.shape[1:]))
    images = (np.random.default_rng(1).random(shape) * 9).astype(found.input.dtype)
    try:
        (together,) = session.run(None, {found.input.name: images})
        (alone,) = session.run(None, {found.input.name: images[:1]})
    except Exception:  # noqa: BLE001 (its exceptions have no common class)
        return "not run"
    assert together.shape == (count, *found.output.shape[1:])
    assert together.dtype == found.output.dtype
    if together.dtype.kind == "f" and np.isfinite(together).all():
        np.testing.assert_allclose(alone[0], together[0], rtol=1e-2, atol=1e-2)
    return "run"


def main() -> None:
    faulthandler.enable()
    parser = argparse.ArgumentParser(
        description="Damage .onnx files at random, read the files and run them."
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    onnxruntime.set_default_logger_severity(4)
    dice = random.Random(options.seed)
    files = sound_files()
    counts: Counter[str] = Counter()
    path = Path(tempfile.mkdtemp(dir=IN_MEMORY), "net.onnx")
    print(f"seed {options.seed}, {len(files)} files, in {path}", flush=True)
    until = time.monotonic() + options.seconds
    while time.monotonic() < until:
        damage = dice.choice((damaged, changed, changed))
        path.write_bytes(damage(dice, dice.choice(files)))
        found = examine(path)
        counts[run(found) if found else "refused"] += 1
    path.unlink()
    path.parent.rmdir()
    print(f"{sum(counts.values()):,} files: {dict(counts)}, no guarantee broken")


if __name__ == "__main__":
    main()
