"""The engine against an independent forward pass, and at its edges."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pathlib
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from model_store import amx, backend, engine, manifest, network, probes, versions
from model_store.architectures import build
from model_store.batch import BadRow, BatchFormat, buckets
from model_store.device import Device, DeviceUnavailable
from model_store.engine import GluonEngine, load_engine
from model_store.manifest import BadModel, Int8
from model_store.network import Network
from model_store.params import BadParams, read_params, sha256, write_params
from model_store.precision import Precision
from model_store.replica import Replica
from model_store.runtime import load_mxnet
from tests.model_store.test_manifest import GOOD, TEMPERATURE
from tests.reference import probabilities

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MXNet's own
]
on_the_engines_loop = pytest.mark.asyncio(loop_scope="module")
TOLERANCE = 1e-4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loaded(model: pathlib.Path) -> AsyncIterator[GluonEngine]:
    async with load_engine(model, device="cpu", max_batch_size=64) as engine:
        yield engine


@pytest.fixture(scope="module")
def images() -> Any:
    """64 images of coloured squares, from coarse to fine."""
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
async def test_every_batch_size(loaded: GluonEngine, images: Any, expected: Any, size: int) -> None:
    """A batch of any size, padded or not, gives each image what NumPy computes for it."""
    rows = await loaded.infer(list(images[:size]))
    assert len(rows) == size
    for row, wanted in zip(rows, expected, strict=False):
        assert isinstance(row, np.ndarray) and row.shape == (10,) and row.dtype == np.float32
        assert np.abs(row - wanted).max() < TOLERANCE


@on_the_engines_loop
async def test_alone(loaded: GluonEngine, images: Any, expected: Any) -> None:
    """Fifty images one by one: company changes nothing."""
    for image, wanted in zip(images[:50], expected, strict=False):
        (row,) = await loaded.infer([image])
        assert isinstance(row, np.ndarray)
        assert np.abs(row - wanted).max() < TOLERANCE
        assert row.sum() == pytest.approx(1, abs=1e-5)


@on_the_engines_loop
async def test_photos(loaded: GluonEngine, model: pathlib.Path, data: pathlib.Path) -> None:
    """The same holds for photographs."""
    paths = sorted((data / "photos").glob("*.jpg"))[::3][:50]
    photos = [np.asarray(Image.open(path).convert("RGB").resize((32, 32))) for path in paths]
    wanted = probabilities(read_params(model / "net.params"), np.stack(photos))
    rows = await loaded.infer(photos)
    assert np.abs(np.stack(rows) - wanted).max() < TOLERANCE  # type: ignore[arg-type]


@on_the_engines_loop
async def test_buckets_are_warm(loaded: GluonEngine) -> None:
    """Every bucket up to the largest batch has been run and timed before `ready`."""
    assert list(loaded.warm_up_seconds) == buckets(64, few=amx.enabled(os.environ))
    for seconds in loaded.warm_up_seconds.values():
        assert len(seconds) >= 3 and min(seconds) > 0


@on_the_engines_loop
async def test_one_thread_for_life(loaded: GluonEngine, images: Any) -> None:
    """However many batches are asked for, one engine thread answers them."""
    before = {thread.name for thread in threading.enumerate()}
    for _ in range(5):
        await loaded.infer([images[0]])
    assert {t.name for t in threading.enumerate()} == before
    assert len([name for name in before if name.startswith("engine")]) == 1


@pytest.mark.parametrize(
    ("size", "all_of_them", "few"),
    [
        (1, [1], [1]),
        (6, [1, 2, 4, 6], [1, 4, 6]),
        (8, [1, 2, 4, 8], [1, 4, 8]),
        (16, [1, 2, 4, 8, 16], [1, 4, 16]),
    ],
)
def test_bucket_sizes(size: int, all_of_them: list[int], few: list[int]) -> None:
    assert buckets(size) == all_of_them
    assert buckets(size, few=True) == few


def two_classes() -> BatchFormat:
    return BatchFormat(manifest.Manifest.model_validate(GOOD), [1, 2, 4])


def test_not_a_number_fails_its_own_item() -> None:
    """A row that is not finite is an exception in its place; its neighbours are answers."""
    rows = np.array([[0.5, 0.5], [np.nan, 0.5], [0.1, 0.9]], dtype=np.float32)
    good, bad, also_good = two_classes().check_rows(rows)
    assert isinstance(bad, BadRow)
    assert np.array_equal(cast(Any, good), rows[0])
    assert np.array_equal(cast(Any, also_good), rows[2])


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 3), (3, 2, 1)])
def test_rows_of_another_shape_are_no_answers(shape: tuple[int, ...]) -> None:
    """Probabilities are one number for each class the manifest names."""
    results = two_classes().check_rows(np.zeros(shape, dtype=np.float32))
    assert [type(result) for result in results] == [BadRow] * 3


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "src/storage/./pooled_storage_manager.h:161: cudaMalloc retry failed: out of memory",
            True,
        ),
        ("CUDA: Check failed: e == cudaSuccess (2 vs. 0) : out of memory", True),
        ("Check failed: e == CUBLAS_STATUS_SUCCESS: cuBLAS: CUBLAS_STATUS_ALLOC_FAILED", True),
        ("cuDNN: Check failed: e == CUDNN_STATUS_SUCCESS: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cpu_device_storage.h, line 74\nMXNetError: Failed to allocate CPU Memory", True),
        ("src/storage/./pooled_storage_manager.h:62: Memory allocation failed.", True),
        ("std::bad_alloc", True),
        ("CUDA: an illegal memory access was encountered", False),
        ("cudaMalloc failed: an illegal memory access was encountered", False),
        ("CUDA: no kernel image is available for execution on the device", False),
        ("Check failed: memory format of the weights", False),
    ],
)
def test_out_of_memory(message: str, expected: bool) -> None:
    """What a smaller batch may cure, in the words of each library, and what merely names memory."""
    assert network.is_out_of_memory(message) is expected


@pytest.fixture
def copy(model: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The version that ships, to be damaged, in a store of its own."""
    return pathlib.Path(shutil.copytree(model, tmp_path / model.parent.name / model.name))


def describe(folder: pathlib.Path, **changes: Any) -> None:
    path = folder / manifest.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@on_the_engines_loop
async def test_changed_bytes_are_not_served(copy: pathlib.Path) -> None:
    """A flipped bit in a weight loads silently in MXNet; here the checksum refuses it."""
    path = copy / "net.params"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadModel, match="SHA-256"):
        async with load_engine(copy, device="cpu"):
            pass


@on_the_engines_loop
async def test_another_size_is_not_read(copy: pathlib.Path) -> None:
    """A file of another size is refused as such: not one byte of it is looked at."""
    size = (copy / "net.params").stat().st_size
    (copy / "net.params").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadModel, match=rf"4 bytes instead of {size:,}"):
        async with load_engine(copy, device="cpu"):
            pass


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "pets"}, "rename the folder"),
        ({"version": "999"}, "rename the folder"),
        ({"classes": ["cat", "dog"]}, "another shape"),
        ({"architecture": "cifar_resnet56_v1"}, "missing"),
        ({"architecture": "resnet50"}, "cifar_resnet20_v1"),
    ],
)
@on_the_engines_loop
async def test_wrong_network(copy: pathlib.Path, changes: dict[str, Any], told: str) -> None:
    """Parameters of another network, or an unknown one, are refused before a batch is run."""
    describe(copy, **changes)
    with pytest.raises((BadModel, BadParams, ValueError), match=told):
        async with load_engine(copy, device="cpu"):
            pass


@on_the_engines_loop
async def test_not_finite_weights(copy: pathlib.Path) -> None:
    """One NaN among the weights is found at load, not in the answers."""
    arrays = {name: array.copy() for name, array in read_params(copy / "net.params").items()}
    arrays["output.weight"][0, 0] = np.nan
    write_params(copy / "net.params", arrays)
    described = json.loads((copy / manifest.MANIFEST).read_text())["parameters"]
    describe(copy, parameters=described | {"sha256": sha256(copy / "net.params")})
    with pytest.raises(BadParams, match="not finite"):
        async with load_engine(copy, device="cpu"):
            pass


@on_the_engines_loop
async def test_an_explicit_gpu_must_be_there(model: pathlib.Path) -> None:
    with pytest.raises(DeviceUnavailable, match="gpu"):
        async with load_engine(model, device="gpu:99"):
            pass


@pytest.fixture
def another(model: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Version 2: what ships, with its outputs in reverse order."""
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
async def test_another_version_takes_over(
    model: pathlib.Path, another: pathlib.Path, images: Any, expected: Any
) -> None:
    """Batches take turns with the steps of the load. Each is computed by the version that `model`
    named as it was handed over, the one in flight at the switch included; and never again by the
    old one."""
    async with load_engine(model, device="cpu", max_batch_size=4) as engine:
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
        assert switched_at[0] > 50, "batches take turns with a load of so many steps"
        assert list(engine.warm_up_seconds) == [1, 2, 4]


@on_the_engines_loop
async def test_lanes_compute_side_by_side(model: pathlib.Path, images: Any, expected: Any) -> None:
    """Each batch in the lane that is free first, on a thread and a network of its own; every
    image gets what NumPy computes for it, whatever the other lane does."""
    async with load_engine(model, device="cpu", max_batch_size=16, lanes=2) as engine:
        assert engine.lanes == 2
        assert {len(seconds) for seconds in engine.warm_up_seconds.values()} == {10}
        computed: set[tuple[int, int]] = set()
        for number, replica in enumerate(engine._replicas):
            compute = replica.compute

            def infer(inputs: Any, number: int = number, compute: Any = compute) -> Any:
                computed.add((number, threading.get_ident()))
                return compute(inputs)

            replica.compute = infer  # type: ignore[method-assign]

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
async def test_the_lane_that_is_free_first_takes_the_next(
    model: pathlib.Path, images: Any, expected: Any
) -> None:
    """So nobody waits behind a batch that takes long while another lane has nothing to do; and what
    fails, or whose caller has gone, holds nobody up."""
    async with load_engine(model, device="cpu", max_batch_size=2, lanes=2) as engine:
        taken, goes_on = threading.Event(), threading.Event()
        asked: list[int] = []
        unheard: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: unheard.append(told))

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
            replica.compute = computes(replica)  # type: ignore[method-assign, assignment]
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
async def test_a_failure_keeps_nothing(model: pathlib.Path, images: Any) -> None:
    """Of a batch that failed nothing is left for the garbage to be collected, which comes rarely,
    on any thread."""
    async with load_engine(model, device="cpu", max_batch_size=2, lanes=2) as engine:
        kept: list[weakref.ref[Any]] = []

        def fails(inputs: Any) -> Any:
            kept.append(weakref.ref(inputs))
            raise MemoryError("no room")

        for replica in engine._replicas:
            replica.compute = fails  # type: ignore[method-assign]
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
    ("device", "gpu_build", "in_order"),
    [("auto", False, True), ("cpu", True, True), ("auto", True, False), ("gpu:0", True, False)],
)
def test_lanes_need_mxnet_to_run_in_order(
    monkeypatch: pytest.MonkeyPatch, device: str, gpu_build: bool, in_order: bool
) -> None:
    """And a GPU, which may still be chosen, needs that it does not."""
    loaded_in_order: list[bool] = []
    monkeypatch.setattr("model_store.runtime.is_gpu_build", lambda: gpu_build)
    monkeypatch.setattr(
        backend,
        "load_mxnet",
        lambda threads, in_order, with_amx: loaded_in_order.append(in_order),
    )
    monkeypatch.setattr(backend, "choose", lambda mx, device: None)
    backend.start_backend(device, 1, with_amx=False)
    assert loaded_in_order == [in_order]


MANY = frozenset({"avx512_vnni", "amx_int8"})


@pytest.mark.parametrize(
    ("flags", "precision", "size", "gib", "worth_it"),
    [
        (MANY, "int8", 16, 24.0, True),
        (MANY, "auto", 16, 24.0, True),
        (MANY, "fp32", 16, 24.0, False),
        (MANY - {"amx_int8"}, "int8", 16, 24.0, False),
        (MANY, "int8", 16, 2.7, True),
        (MANY, "int8", 16, 2.5, False),
        (MANY, "int8", 64, 2.7, False),
        (MANY, "int8", 64, 3.5, True),
    ],
)
def test_when_tiles_are_worth_their_memory(
    copy: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: frozenset[str],
    precision: str,
    size: int,
    gib: float,
    worth_it: bool,
) -> None:
    """In int8, where a container's memory holds two versions' tiles three times over: those of 21
    convolutions in three buckets, or four."""
    ranges = {f"tensor{number}": [-1.0, 1.0] for number in range(21)}
    describe(copy, int8={"calibrated_on": "noise", "images": 1, "ranges": ranges})
    monkeypatch.setattr(amx, "memory", lambda: int(gib * 2**30))
    monkeypatch.setattr("model_store.precision.cpu_flags", lambda: flags)
    bucket_count = len(buckets(size, few=True))
    assert amx.fits_memory(copy, precision, bucket_count) is worth_it


@on_the_engines_loop
async def test_a_gpu_has_one_lane(model: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Device(load_mxnet(1).cpu(), "gpu:0", "for once")
    monkeypatch.setattr(backend, "choose", lambda mx, device: gpu)
    async with load_engine(model, max_batch_size=1, precision="fp32", lanes=3) as loaded:
        assert loaded.lanes == 1


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
def test_how_many_lanes_are_worth_it(
    model: pathlib.Path, monkeypatch: pytest.MonkeyPatch, precision: str, cores: int, lanes: int
) -> None:
    """One a core, 4 at most; in int8 one core is left to the event loop."""
    ranges = Int8(calibrated_on="noise", images=1, ranges={"data": (-1.0, 1.0)})
    calibrated = versions.read_manifest(model).model_copy(update={"int8": ranges})
    monkeypatch.setattr(versions, "read_manifest", lambda folder: calibrated)
    monkeypatch.setattr(engine, "cores", lambda: cores)
    assert engine.default_lanes(model, precision) == lanes


@on_the_engines_loop
async def test_all_lanes_change_at_once(
    model: pathlib.Path, another: pathlib.Path, images: Any, expected: Any
) -> None:
    """What was handed over before the switch is the old version's, all else the new one's; what
    fails to load in one lane changes none."""
    async with load_engine(model, device="cpu", max_batch_size=2, lanes=2) as engine:
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
        load, loads = Network.load, iter([False, True])

        def fails(network: Network, arrays: Any, beside: bool) -> Any:
            yield from load(network, arrays, beside)
            if next(loads):
                raise MemoryError("no room for a second one")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Network, "load", fails)
            with pytest.raises(MemoryError):
                await engine.replace(model)
        assert engine._replicas[1] is second and engine.model.version == "2"
        await engine.unload()
        with pytest.raises(RuntimeError, match="no version"):
            await engine.infer([images[0]])


@on_the_engines_loop
async def test_what_cannot_be_loaded_changes_nothing(
    model: pathlib.Path, another: pathlib.Path, images: Any, expected: Any
) -> None:
    """Found before it is read, while it is built, or when it answers nonsense."""
    path = another / "net.params"
    arrays = {name: array.copy() for name, array in read_params(path).items()}
    async with load_engine(model, device="cpu", max_batch_size=2) as engine:
        for value, told in ((0, "SHA-256"), (np.nan, "not finite"), (3e38, "nonsense")):
            arrays["output.weight"][:] = value
            write_params(path, arrays)
            if value:
                described = json.loads((another / manifest.MANIFEST).read_text())["parameters"]
                describe(another, parameters=described | {"sha256": sha256(path)})
            with pytest.raises((BadModel, BadParams), match=told):
                await engine.replace(another)
            assert engine.model.version == "1"
            (row,) = await engine.infer([images[0]])
            assert np.abs(row - expected[0]).max() < TOLERANCE


@on_the_engines_loop
async def test_unload_and_go_on(model: pathlib.Path, images: Any, expected: Any) -> None:
    """One thread still: it outlives the network."""
    async with load_engine(model, device="cpu", max_batch_size=1) as engine:
        await engine.unload()
        await engine.unload()
        with pytest.raises(RuntimeError, match="no version"):
            await engine.infer([images[0]])
        await engine.replace(model)
        (row,) = await engine.infer([images[0]])
        assert np.abs(row - expected[0]).max() < TOLERANCE


@on_the_engines_loop
async def test_a_load_that_is_given_up(model: pathlib.Path, images: Any, expected: Any) -> None:
    """Cancelled between two steps, it leaves nothing behind."""
    async with load_engine(model, device="cpu", max_batch_size=1) as engine:
        load = asyncio.create_task(engine.replace(model))
        for _ in range(10):
            await engine.infer([images[0]])
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        (row,) = await engine.infer([images[0]])
        assert np.abs(row - expected[0]).max() < TOLERANCE


def test_half_precision_is_built(model: pathlib.Path) -> None:
    """fp16 as far as a machine without a GPU goes: cast, shared by the buckets, computed down to
    the first kernel that MXNet has for GPUs alone."""
    mx = load_mxnet(1)
    described = manifest.read(model)
    device = Device(mx.cpu(), "gpu:0", "for once")
    half = Network(mx, described, device, Precision("fp16", "as asked"), [1, 2])
    for _ in half.load(read_params(model / "net.params")):
        pass
    with pytest.raises(mx.base.MXNetError, match="FP16 gemm on cpu not implemented"):
        half.compute(np.zeros((1, 3, 32, 32), np.float32))
    kinds = {name: np.dtype(p.dtype) for name, p in half._shared.collect_params().items()}
    assert kinds["net_conv0_weight"] == np.float16
    assert kinds["net_batchnorm0_gamma"] == np.float32


@on_the_engines_loop
async def test_the_temperature_divides_the_logits(copy: pathlib.Path, images: Any) -> None:
    """Twice the temperature, half as sure."""
    describe(copy, temperature=TEMPERATURE | {"value": 2.0})
    async with load_engine(copy, device="cpu", max_batch_size=8) as engine:
        rows = await engine.infer(list(images[:8]))
    wanted = probabilities(read_params(copy / "net.params"), images[:8], temperature=2.0)
    assert np.abs(np.stack(rows) - wanted).max() < TOLERANCE  # type: ignore[arg-type]


@on_the_engines_loop
async def test_recorded_probes(copy: pathlib.Path) -> None:
    """A version loads where every bucket gives what was recorded, and nowhere else: not with other
    parameters of the right checksum, not with another normalisation."""
    recorded = probabilities(read_params(copy / "net.params"), probes.images())
    describe(copy, probes={"fp32": recorded.tolist()})
    async with load_engine(copy, device="cpu", max_batch_size=8):
        pass
    describe(copy, normalisation={"mean": [0, 0, 0], "std": [1, 1, 1]})
    with pytest.raises(BadModel, match="something else than when it was added"):
        async with load_engine(copy, device="cpu", max_batch_size=1):
            pass


def test_what_mxnet_fuses_wrongly() -> None:
    """A `_v2` network, which MXNet's fused operators compute wrongly, is computed rightly."""
    mx = load_mxnet(1)
    plain = build("cifar_resnet20_v2", 10)
    plain.initialize(mx.init.Xavier())
    inputs = np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32)
    wanted = mx.nd.softmax(plain(mx.nd.array(inputs))).asnumpy()
    arrays = {n: p.data().asnumpy() for n, p in plain._collect_params_with_prefix().items()}
    described = {"name": "v2", "architecture": "cifar_resnet20_v2", "classes": list("abcdefghij")}
    model = manifest.Manifest.model_validate(GOOD | described)
    device = Device(mx.cpu(), "cpu", "as asked")
    served = Network(mx, model, device, Precision("fp32", "as asked"), [1, 2])
    for _ in served.load(arrays):
        pass
    rows = BatchFormat(model, [1, 2]).probabilities(served.compute(inputs))
    assert np.abs(rows - wanted).max() < TOLERANCE
