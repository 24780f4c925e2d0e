"""The engine compared with an independent forward pass, and its errors."""

from __future__ import annotations

import asyncio
import gc
import json
import pathlib
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from model_store import backends, engine, manifest, probes, versions
from model_store.batch import buckets
from model_store.device import DeviceUnavailable
from model_store.engine import LaneEngine, load_engine
from model_store.manifest import BadModel, Int8
from model_store.params import BadParams, read_params, sha256, write_params
from model_store.replica import Replica
from tests.model_store.test_manifest import TEMPERATURE
from tests.reference import probabilities

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MXNet's own
]
Load = Callable[..., AbstractAsyncContextManager[LaneEngine]]
on_the_engines_loop = pytest.mark.asyncio(loop_scope="module")
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=list(backends.MODULES))
def load(request: pytest.FixtureRequest) -> Load:
    """Loads a version with each backend."""
    if request.param not in backends.installed():
        pytest.skip(f"{request.param} is not installed")
    return partial(load_engine, backend=request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loaded(load: Load, model: pathlib.Path) -> AsyncIterator[LaneEngine]:
    async with load(model, device="cpu", max_batch_size=64) as engine:
        yield engine


@pytest.fixture(scope="module")
def images() -> Any:
    """64 images of colored squares, from coarse to fine."""
    random = np.random.default_rng(11)
    made = []
    for number in range(64):
        cells = 2 ** (1 + number % 5)
        cell = 32 // cells
        coarse = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        made.append(coarse.repeat(cell, axis=0).repeat(cell, axis=1))
    return np.stack(made)


@pytest.fixture(scope="module")
def expected(model: pathlib.Path, images: Any) -> Any:
    return probabilities(read_params(model / "net.params"), images)


@pytest.mark.parametrize("size", range(1, 65))
@on_the_engines_loop
async def test_infer_computes_any_batch_size(
    loaded: LaneEngine, images: Any, expected: Any, size: int
) -> None:
    """A batch of any size gives each image what NumPy computes for it."""
    rows = await loaded.infer(list(images[:size]))
    assert len(rows) == size
    for row, wanted in zip(rows, expected, strict=False):
        assert isinstance(row, np.ndarray) and row.shape == (10,) and row.dtype == np.float32
        assert np.abs(row - wanted).max() < TOLERANCE


@on_the_engines_loop
async def test_infer_computes_single_images(loaded: LaneEngine, images: Any, expected: Any) -> None:
    """Fifty images one by one have the same results as in a batch."""
    for image, wanted in zip(images[:50], expected, strict=False):
        (row,) = await loaded.infer([image])
        assert isinstance(row, np.ndarray)
        assert np.abs(row - wanted).max() < TOLERANCE
        assert row.sum() == pytest.approx(1, abs=1e-5)


@on_the_engines_loop
async def test_infer_computes_photographs(
    loaded: LaneEngine, model: pathlib.Path, data: pathlib.Path
) -> None:
    """The same holds for photographs."""
    paths = sorted((data / "photos").glob("*.jpg"))[::3][:50]
    photos = [np.asarray(Image.open(path).convert("RGB").resize((32, 32))) for path in paths]
    wanted = probabilities(read_params(model / "net.params"), np.stack(photos))
    rows = await loaded.infer(photos)
    assert np.abs(np.stack(rows) - wanted).max() < TOLERANCE  # type: ignore[arg-type]


@on_the_engines_loop
async def test_load_warms_up_every_bucket(loaded: LaneEngine) -> None:
    """Every bucket up to the largest batch has been run and timed."""
    assert list(loaded.warm_up_seconds) == buckets(64, few=loaded._backend.few_buckets)
    for seconds in loaded.warm_up_seconds.values():
        assert len(seconds) >= 3 and min(seconds) > 0


@on_the_engines_loop
async def test_engine_uses_one_thread_per_lane(loaded: LaneEngine, images: Any) -> None:
    """However many batches are computed."""
    before = {thread.name for thread in threading.enumerate()}
    for _ in range(5):
        await loaded.infer([images[0]])
    assert {t.name for t in threading.enumerate()} == before
    assert len([name for name in before if name.startswith("engine")]) == 1


@pytest.fixture
def copy(model: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the version that ships in another store, for tests that damage it."""
    return pathlib.Path(shutil.copytree(model, tmp_path / model.parent.name / model.name))


def describe(folder: pathlib.Path, **changes: Any) -> None:
    path = folder / manifest.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@on_the_engines_loop
async def test_load_rejects_changed_bytes(load: Load, copy: pathlib.Path) -> None:
    """MXNet would load a flipped bit in a weight; the checksum differs."""
    path = copy / "net.params"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadModel, match="SHA-256"):
        async with load(copy, device="cpu"):
            pass


@on_the_engines_loop
async def test_load_rejects_another_size_unread(load: Load, copy: pathlib.Path) -> None:
    """No byte of a file with another size is read."""
    size = (copy / "net.params").stat().st_size
    (copy / "net.params").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadModel, match=rf"4 bytes instead of {size:,}"):
        async with load(copy, device="cpu"):
            pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "pets"}, "rename the folder"),
        ({"version": "999"}, "rename the folder"),
        ({"classes": ["cat", "dog"]}, "another shape"),
        ({"architecture": "cifar_resnet56_v1"}, "missing"),
        ({"architecture": "resnet50"}, "cifar_resnet20_v1"),
    ],
)
@on_the_engines_loop
async def test_load_rejects_parameters_of_another_network(
    load: Load, copy: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    """Before a batch is computed."""
    describe(copy, **changes)
    with pytest.raises((BadModel, BadParams, ValueError), match=message):
        async with load(copy, device="cpu"):
            pass


@on_the_engines_loop
async def test_load_rejects_weights_that_are_not_finite(load: Load, copy: pathlib.Path) -> None:
    """One NaN among the weights is found when they are loaded."""
    arrays = {name: array.copy() for name, array in read_params(copy / "net.params").items()}
    arrays["output.weight"][0, 0] = np.nan
    write_params(copy / "net.params", arrays)
    described = json.loads((copy / manifest.MANIFEST).read_text())["parameters"]
    describe(copy, parameters=described | {"sha256": sha256(copy / "net.params")})
    with pytest.raises(BadParams, match="not finite"):
        async with load(copy, device="cpu"):
            pass


@on_the_engines_loop
async def test_load_rejects_a_missing_gpu(load: Load, model: pathlib.Path) -> None:
    """An explicit GPU is not replaced by the CPU."""
    with pytest.raises(DeviceUnavailable, match="gpu"):
        async with load(model, device="gpu:99"):
            pass


@pytest.fixture
def another(model: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Version 2: the version that ships with its outputs in reverse order."""
    folder = pathlib.Path(shutil.copytree(model, tmp_path / model.parent.name / "2"))
    arrays = dict(read_params(folder / "net.params"))
    for output in "output.weight", "output.bias":
        arrays[output] = arrays[output][::-1]
    write_params(folder / "net.params", arrays)
    described = json.loads((folder / manifest.MANIFEST).read_text())["parameters"]
    described["sha256"] = sha256(folder / "net.params")
    describe(folder, version="2", parameters=described)
    return folder


@on_the_engines_loop
async def test_replace_switches_between_batches(
    load: Load, model: pathlib.Path, another: pathlib.Path, images: Any, expected: Any
) -> None:
    """Batches alternate with the steps of the load. Each batch is run by the version that
    `model` named when it was handed over."""
    async with load(model, device="cpu", max_batch_size=4) as engine:
        switched_at: list[int] = []
        batches: list[asyncio.Task[tuple[str, Any]]] = []

        async def hand_over() -> tuple[str, Any]:
            return engine.model.version, await engine.infer(list(images[:3]))

        async def serve() -> None:
            while len(batches) < 10 or not switched_at or len(batches) < switched_at[0] + 10:
                batches.append(asyncio.create_task(hand_over()))
                await asyncio.wait(batches[-1:])

        serving = asyncio.create_task(serve())
        in_flight = asyncio.create_task(hand_over())
        await engine.replace(another, on_switch=lambda: switched_at.append(len(batches)))
        await serving
        assert engine.model.version == "2"
        rows = {"1": expected[:3], "2": expected[:3, ::-1]}
        served = [batch.result() for batch in [*batches, in_flight]]
        for version, got in served:
            assert np.abs(np.stack(got) - rows[version]).max() < TOLERANCE
        *versions, first = [version for version, _ in served]
        assert first == "1"
        assert versions == sorted(versions) and versions[switched_at[0] :] == ["2"] * 10
        assert switched_at[0] > 10, "batches take turns with a load of so many steps"
        assert list(engine.warm_up_seconds) == [1, 2, 4]


@on_the_engines_loop
async def test_lanes_compute_at_the_same_time(
    load: Load, model: pathlib.Path, images: Any, expected: Any
) -> None:
    """Each lane has a thread and a network of its own, and every image gets what NumPy computes for
    it."""
    async with load(model, device="cpu", max_batch_size=16, lanes=2) as engine:
        assert engine.lanes == 2
        assert {len(seconds) for seconds in engine.warm_up_seconds.values()} == {10}
        computed: set[tuple[int, int]] = set()
        for number, replica in enumerate(engine._replicas):
            compute = replica.compute

            def infer(inputs: Any, number: int = number, compute: Any = compute) -> Any:
                computed.add((number, threading.get_ident()))
                return compute(inputs)

            replica.compute = infer

        async def serve(first: int) -> None:
            for turn in range(150):
                start = (first + 7 * turn) % 48
                size = 1 + (first + turn) % 16
                rows = await engine.infer(list(images[start : start + size]))
                wanted = expected[start : start + size]
                assert np.abs(np.stack(rows) - wanted).max() < TOLERANCE  # type: ignore[arg-type]

        await asyncio.gather(serve(0), serve(1))
        assert len(computed) == len({thread for _, thread in computed}) == 2


@on_the_engines_loop
async def test_first_free_lane_takes_the_next_batch(
    load: Load, model: pathlib.Path, images: Any, expected: Any
) -> None:
    """No batch waits behind a slow one while another lane is free. A batch that fails or is
    canceled delays no other."""
    async with load(model, device="cpu", max_batch_size=2, lanes=2) as engine:
        taken, goes_on = threading.Event(), threading.Event()
        asked: list[int] = []
        unheard: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, message: unheard.append(message))

        def computes(replica: Replica) -> Callable[[Any], Any]:
            compute = replica.compute

            def one(inputs: Any) -> Any:
                asked.append(len(asked))
                if asked[-1] == 0:
                    taken.set()
                    assert goes_on.wait(30)
                if asked[-1] == 1:
                    raise MemoryError("no room for the second")
                return compute(inputs)

            return one

        for replica in engine._replicas:
            replica.compute = computes(replica)  # type: ignore[assignment]
        held = asyncio.create_task(engine.infer([images[0]]))
        await asyncio.to_thread(taken.wait, 30)
        with pytest.raises(MemoryError, match="no room"):
            await engine.infer([images[1]])
        left = asyncio.create_task(engine.infer([images[2]]))
        await asyncio.sleep(0)
        left.cancel()
        for number in range(3, 9):
            (row,) = await engine.infer([images[number]])
            assert np.abs(row - expected[number]).max() < TOLERANCE
        assert not held.done() and left.cancelled()
        goes_on.set()
        (row,) = await held
        assert np.abs(row - expected[0]).max() < TOLERANCE
        asyncio.get_running_loop().set_exception_handler(None)
        assert not unheard


@on_the_engines_loop
async def test_failed_batches_are_released(load: Load, model: pathlib.Path, images: Any) -> None:
    """Without the garbage collector, which runs rarely and on any thread."""
    async with load(model, device="cpu", max_batch_size=2, lanes=2) as engine:
        kept: list[weakref.ref[Any]] = []

        def fails(inputs: Any) -> Any:
            kept.append(weakref.ref(inputs))
            raise MemoryError("no room")

        for replica in engine._replicas:
            replica.compute = fails
        gc.disable()
        try:
            for _ in range(5):
                with pytest.raises(MemoryError):
                    await engine.infer(list(images[:2]))
            await asyncio.sleep(0.05)  # the lane's thread has let go, too
            assert len(kept) == 5 and all(ref() is None for ref in kept)
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("precision", "cores", "lanes"),
    [
        ("fp32", 1, 1),
        ("fp32", 2, 2),
        ("fp32", 64, 4),
        ("int8", 1, 1),
        ("int8", 2, 1),
        ("int8", 4, 3),
    ],
)
def test_default_lanes_depend_on_cores_and_precision(
    model: pathlib.Path, monkeypatch: pytest.MonkeyPatch, precision: str, cores: int, lanes: int
) -> None:
    """One for each core, 4 at most; in int8 one core is left to the event loop."""
    ranges = Int8(calibrated_on="noise", images=1, ranges={"data": (-1.0, 1.0)})
    calibrated = versions.read_manifest(model).model_copy(update={"int8": ranges})
    monkeypatch.setattr(engine, "cores", lambda: cores)
    assert engine.default_lanes(calibrated, precision) == lanes


@on_the_engines_loop
async def test_replace_switches_all_lanes_at_once(
    load: Load, model: pathlib.Path, another: pathlib.Path, images: Any, expected: Any
) -> None:
    """Batches handed over before the switch are run by the old version, all others by the new
    one. If loading fails in one lane, no lane changes."""
    async with load(model, device="cpu", max_batch_size=2, lanes=2) as engine:
        new: list[asyncio.Task[Any]] = []

        def switched() -> None:
            new.extend(asyncio.create_task(engine.infer(list(images[:2]))) for _ in range(4))

        old: list[asyncio.Task[Any]] = [
            asyncio.create_task(engine.infer(list(images[:2]))) for _ in range(4)
        ]
        await engine.replace(another, on_switch=switched)
        await asyncio.gather(*old, *new)
        for batch in old:
            assert np.abs(np.stack(batch.result()) - expected[:2]).max() < TOLERANCE
        for batch in new:
            assert np.abs(np.stack(batch.result()) - expected[:2, ::-1]).max() < TOLERANCE
        second = engine._replicas[1]
        load_replica, loads = Replica.load, iter([False, True])

        def fails(replica: Replica, beside: bool) -> Any:
            yield from load_replica(replica, beside)
            if next(loads):
                raise MemoryError("no room for a second one")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Replica, "load", fails)
            with pytest.raises(MemoryError):
                await engine.replace(model)
        assert engine._replicas[1] is second and engine.model.version == "2"
        await engine.unload()
        with pytest.raises(RuntimeError, match="no version"):
            await engine.infer([images[0]])


@on_the_engines_loop
async def test_replace_changes_nothing_if_it_fails(
    load: Load, model: pathlib.Path, another: pathlib.Path, images: Any, expected: Any
) -> None:
    """Whether it fails before reading, while building, or because results are not finite."""
    path = another / "net.params"
    arrays = {name: array.copy() for name, array in read_params(path).items()}
    async with load(model, device="cpu", max_batch_size=2) as engine:
        for value, message in ((0, "SHA-256"), (np.nan, "not finite"), (3e38, "invalid results")):
            arrays["output.weight"][:] = value
            write_params(path, arrays)
            if value:
                described = json.loads((another / manifest.MANIFEST).read_text())["parameters"]
                describe(another, parameters=described | {"sha256": sha256(path)})
            with pytest.raises((BadModel, BadParams), match=message):
                await engine.replace(another)
            assert engine.model.version == "1"
            (row,) = await engine.infer([images[0]])
            assert np.abs(row - expected[0]).max() < TOLERANCE


@on_the_engines_loop
async def test_unload_frees_the_version(
    load: Load, model: pathlib.Path, images: Any, expected: Any
) -> None:
    """Another version can be loaded afterwards, on the same thread."""
    async with load(model, device="cpu", max_batch_size=1) as engine:
        await engine.unload()
        await engine.unload()
        with pytest.raises(RuntimeError, match="no version"):
            await engine.infer([images[0]])
        await engine.replace(model)
        (row,) = await engine.infer([images[0]])
        assert np.abs(row - expected[0]).max() < TOLERANCE


@on_the_engines_loop
async def test_replace_can_be_canceled(
    load: Load, model: pathlib.Path, images: Any, expected: Any
) -> None:
    """Between two steps; the engine continues with the version that serves."""
    async with load(model, device="cpu", max_batch_size=1) as engine:
        loading = asyncio.create_task(engine.replace(model))
        for _ in range(10):
            await engine.infer([images[0]])
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        (row,) = await engine.infer([images[0]])
        assert np.abs(row - expected[0]).max() < TOLERANCE


@on_the_engines_loop
async def test_infer_divides_logits_by_the_temperature(
    load: Load, copy: pathlib.Path, images: Any
) -> None:
    """Probabilities are those of NumPy with the same temperature."""
    describe(copy, temperature=TEMPERATURE | {"value": 2.0})
    async with load(copy, device="cpu", max_batch_size=8) as engine:
        rows = await engine.infer(list(images[:8]))
    wanted = probabilities(read_params(copy / "net.params"), images[:8], temperature=2.0)
    assert np.abs(np.stack(rows) - wanted).max() < TOLERANCE  # type: ignore[arg-type]


@on_the_engines_loop
async def test_load_compares_recorded_probes(load: Load, copy: pathlib.Path) -> None:
    """A version loads if every bucket gives what was recorded, and not with another
    normalization."""
    recorded = probabilities(read_params(copy / "net.params"), probes.images())
    describe(copy, probes={"fp32": recorded.tolist()})
    async with load(copy, device="cpu", max_batch_size=8):
        pass
    describe(copy, normalisation={"mean": [0, 0, 0], "std": [1, 1, 1]})
    with pytest.raises(BadModel, match="the results when the version was added"):
        async with load(copy, device="cpu", max_batch_size=1):
            pass
