"""Params: a `.params` file is read to the last byte or rejected with a message."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from model_store.backend import BackendUnavailable
from model_store.mxnet.architectures import build
from model_store.mxnet.runtime import load_mxnet
from model_store.params import (
    HEADER,
    MAX_ARRAYS,
    MAX_NAME,
    TYPES,
    BadParams,
    check_params,
    read_params,
    sha256,
    write_params,
)
from tests.model_store.fuzz_params import (
    IN_MEMORY,
    V1,
    V2,
    V3,
    damaged,
    examine,
    forged_array,
    forged_file,
    forged_name,
    sound_files,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MXNet's own

Arrays = dict[str, NDArray[Any]]
MANY = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def mx() -> Any:
    try:
        return load_mxnet(threads=1)
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        yield Path(folder, "net.params")


def network() -> Arrays:
    """Names, shapes and size of a network like the one that ships: 1.1 MB, 107 arrays."""
    draw = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]]
    shapes = {f"features.{at}.weight": (48, 19, 3, 3) for at in range(33)}
    shapes |= {f"features.{at}.gamma": (48,) for at in range(73)}
    shapes |= {"output.bias": (10,)}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def same(left: Arrays, right: Arrays) -> bool:
    """Names in order, types, shapes and every bit, NaN included."""
    return [(name, a.dtype, a.shape, a.tobytes()) for name, a in left.items()] == [
        (name, a.dtype, a.shape, a.tobytes()) for name, a in right.items()
    ]


# Round trips


@MANY
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=40).filter(str.isprintable),
        st.sampled_from(list(TYPES.values())).flatmap(
            lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(max_dims=5))
        ),
        min_size=1,
        max_size=5,
    )
)
def test_read_returns_what_was_written(path: Path, arrays: Arrays) -> None:
    """Names, order, element types, shapes and bits are the same; equal arrays give equal bytes."""
    write_params(path, arrays)
    written = path.read_bytes()
    assert same(read_params(path), arrays)
    write_params(path, read_params(path))
    assert path.read_bytes() == written


def test_write_ignores_the_layout_in_memory(path: Path) -> None:
    """Byte order and strides of an array do not change the file."""
    plain = np.arange(6, dtype="<f4").reshape(2, 3)
    write_params(path, {"a": plain})
    written = path.read_bytes()
    for other in (plain.astype(">f4"), np.asfortranarray(plain), plain[::-1][::-1]):
        write_params(path, {"a": other})
        assert path.read_bytes() == written


@pytest.mark.slow
def test_read_returns_what_mxnet_saved(mx: Any, path: Path) -> None:
    """A network's parameters are as in MXNet, and are written back byte for byte."""
    net = build("cifar_resnet20_v1", classes=10)
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros((1, 3, 32, 32)))
    net.save_parameters(str(path))

    arrays = read_params(path)

    theirs = {name: p.data().asnumpy() for name, p in net._collect_params_with_prefix().items()}
    assert same(arrays, theirs)
    check_params(arrays, {name: array.shape for name, array in theirs.items()})
    saved = path.read_bytes()
    write_params(path, arrays)
    assert path.read_bytes() == saved


@pytest.mark.slow
def test_mxnet_loads_what_was_written(mx: Any, path: Path) -> None:
    """`load_parameters` accepts a written file, and the network then has those values."""
    net, other = build("cifar_resnet20_v1", classes=10), build("cifar_resnet20_v1", classes=10)
    for one in (net, other):
        one.initialize(mx.init.Xavier())
        one(mx.nd.zeros((1, 3, 32, 32)))
    arrays = {name: p.data().asnumpy() + 1 for name, p in net._collect_params_with_prefix().items()}
    write_params(path, arrays)
    other.load_parameters(str(path))
    loaded = {name: p.data().asnumpy() for name, p in other._collect_params_with_prefix().items()}
    assert same(loaded, arrays)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES.values(), ids=str)
def test_element_types_are_those_of_mxnet(mx: Any, path: Path, dtype: np.dtype[Any]) -> None:
    """A type code has the same meaning in MXNet, in both directions."""
    arrays = {"arg:fc_weight": np.arange(6, dtype=dtype).reshape(2, 3)}
    mx.nd.save(str(path), {"arg:fc_weight": mx.nd.array(*arrays.values(), dtype=dtype)})
    assert same(read_params(path), arrays)
    write_params(path, arrays)
    assert same({name: a.asnumpy() for name, a in mx.nd.load(str(path)).items()}, arrays)


@pytest.mark.slow
def test_read_keeps_the_prefixes_of_an_export(mx: Any, path: Path) -> None:
    """`net.export` adds arg: or aux: to names."""
    net = build("cifar_resnet20_v1", classes=10)
    net.initialize()
    net.hybridize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    net.export(str(path.with_name("net")))
    arrays = read_params(path.with_name("net-0000.params"))
    assert {name.partition(":")[0] for name in arrays} == {"arg", "aux"}
    assert len(arrays) == len(net.collect_params().keys())


@pytest.mark.slow
def test_read_accepts_numpy_mode(mx: Any, path: Path) -> None:
    """In NumPy mode MXNet writes version 3 of an array, which may be a scalar."""
    with mx.util.np_shape(True):
        three = mx.np.array(3.0).as_nd_ndarray()
        mx.nd.save(str(path), {"scalar": three, "row": mx.nd.ones((1, 2))})
    assert same(
        read_params(path),
        {"scalar": np.array(3, np.float32), "row": np.ones((1, 2), np.float32)},
    )


@pytest.mark.slow
def test_mxnet_reads_damaged_files_the_same(mx: Any, path: Path) -> None:
    """If a damaged file is read at all, MXNet reads the same arrays from it."""
    dice = random.Random(7)
    files = sound_files(versions=[V2])  # MXNet reads version 3 in NumPy mode only
    agreed = 0
    for _ in range(1000):
        path.write_bytes(damaged(dice, dice.choice(files)))
        try:
            arrays = read_params(path)
        except BadParams:
            continue
        if struct.pack("<I", V3) in path.read_bytes():
            continue
        theirs = {name: array.asnumpy() for name, array in mx.nd.load(str(path)).items()}
        assert same(dict(sorted(arrays.items())), dict(sorted(theirs.items())))
        agreed += 1
    assert agreed > 50, "damage that always shows proves little"


# Hostile until proven otherwise

ONE = forged_name(b"a")
FLOAT = b"\0\0\x80?"
FORGED = {
    "nothing": (b"", "the file is empty"),
    "half a header": (HEADER[:9], "ends inside its header"),
    "a header only": (HEADER, "number of arrays needs 8 bytes, but only 0 remain"),
    "another magic": (forged_file(magic=0x113), "not a .params file"),
    "reserved bits": (forged_file(reserved=1), "not a .params file"),
    "zeros": (bytes(4096), "not a .params file"),
    "no arrays": (forged_file([], []), "declares 0 arrays"),
    "too many arrays": (forged_file(count=MAX_ARRAYS + 1), "declares 16,385 arrays"),
    "2^64 - 1 arrays": (forged_file(count=(1 << 64) - 1), "declares 18,446,744,073,709,551,615"),
    "an array that is not there": (forged_file(count=2, names=[]), "array 2 of 2 begins with 0x0"),
    "version 1": (forged_file([forged_array(version=V1)]), "before 1.0"),
    "no version at all": (forged_file([struct.pack("<2I", 1, 1)]), "before 1.0"),
    "an unknown version": (forged_file([forged_array(version=V3 + 1)]), "begins with 0xf993facb"),
    "row sparse": (forged_file([forged_array(storage=1)]), "tostype('default')"),
    "csr": (forged_file([forged_array(storage=2)]), "tostype('default')"),
    "unknown storage": (forged_file([forged_array(storage=-1)]), "unknown storage type -1"),
    "no dimensions": (forged_file([forged_array(shape=())]), "has 0 dimensions"),
    "-1 dimensions": (forged_file([forged_array(version=V3, ndim=-1)]), "has -1 dimensions"),
    "33 dimensions": (forged_file([forged_array(shape=[1] * 33)]), "has 33 dimensions"),
    "2^31 dimensions": (forged_file([forged_array(ndim=(1 << 31) - 1)]), "has 2147483647 dim"),
    "a length of 0": (forged_file([forged_array(b"", shape=(0,))]), "has no elements"),
    "0 times 2^62": (forged_file([forged_array(version=V3, shape=(0, 1 << 62))]), "no elements"),
    "a length of -1": (forged_file([forged_array(shape=(-1, -1))]), "has no elements"),
    "a terabyte": (forged_file([forged_array(shape=(1 << 38,))]), "needs 1,099,511,627,776 bytes"),
    "2^2016 elements": (forged_file([forged_array(shape=[1 << 62] * 32)]), "only 21 remain"),
    "a product of 2^64": (forged_file([forged_array(shape=(1 << 32, 1 << 32))]), "bytes, but only"),
    "an unknown device": (forged_file([forged_array(device=(4, 0))]), "unknown device 4:0"),
    "device 256": (forged_file([forged_array(device=(2, 256))]), "unknown device 2:256"),
    "device -1": (forged_file([forged_array(device=(1, -1))]), "unknown device 1:-1"),
    "bool": (forged_file([forged_array(b"\1", code=7)]), "element type 7"),
    "bfloat16": (forged_file([forged_array(b"\0\0", code=12)]), "element type 12"),
    "type -1": (forged_file([forged_array(code=-1)]), "element type -1"),
    "names forgotten": (forged_file(names=[]), "Save a dict, not a list"),
    "a name too few": (forged_file([forged_array()] * 2), "the file has 2 arrays but 1 names"),
    "2^64 - 1 names": (forged_file(named=(1 << 64) - 1), "but 18,446,744,073,709,551,615 names"),
    "a name of nothing": (forged_file(names=[forged_name(b"")]), "name 1 of 1 is 0 bytes long"),
    "a long name": (forged_file(names=[forged_name(b"a" * 1025)]), "1,025 bytes long"),
    "a petabyte name": (forged_file(names=[forged_name(b"a", 1 << 50)]), "bytes long; 1 to"),
    "a name cut off": (
        forged_file(names=[forged_name(b"a", 2)]),
        "needs 2 bytes, but only 1 remain",
    ),
    "not UTF-8": (forged_file(names=[forged_name(b"\xff\xfe")]), "not UTF-8"),
    "a surrogate": (forged_file(names=[forged_name(b"\xed\xa0\x80")]), "not UTF-8"),
    "a NUL in a name": (forged_file(names=[forged_name(b"a\0b")]), r"not printable: 'a\x00b'"),
    "an escape": (forged_file(names=[forged_name(b"\x1b[31m")]), "not printable"),
    "the same name": (forged_file([forged_array()] * 2, [ONE, ONE]), "name 'a' occurs twice"),
    "more": (forged_file() + b"!", "unexpected data at the end of the file (1 B)"),
    "a file behind it": (forged_file() * 2, "unexpected data at the end of the file"),
}


@pytest.mark.parametrize(("content", "words"), FORGED.values(), ids=FORGED)
def test_read_rejects_forged_files(path: Path, content: bytes, words: str) -> None:
    """The message says which file, what is wrong and what to do. Memory is allocated only for bytes
    that exist."""
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(BadParams) as refusal:
        read_params(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert ". " in message.removeprefix(f"{path}: "), "and what to do"
    assert peak < 1 << 17


def npz() -> bytes:
    np.savez(buffer := io.BytesIO(), a=np.ones(3))
    return buffer.getvalue()


def npy() -> bytes:
    np.save(buffer := io.BytesIO(), np.ones(3))
    return buffer.getvalue()


def zipped() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("net.params", forged_file())
    return buffer.getvalue()


DISGUISED: dict[str, tuple[Callable[[], bytes], str]] = {
    "pickle": (lambda: pickle.dumps({"a": np.ones(3)}), "a Python pickle"),
    "old pickle": (lambda: pickle.dumps({"a": 1}, protocol=2), "a Python pickle"),
    "text pickle": (lambda: pickle.dumps({"a": 1}, protocol=0), "an unknown format"),
    "npz": (npz, "a zip archive"),
    "zip": (zipped, "a zip archive"),
    "npy": (npy, "a NumPy .npy file"),
    "gzip": (lambda: gzip.compress(forged_file()), "a gzip archive"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "symbol": (lambda: json.dumps({"nodes": []}).encode(), "JSON"),
    "web page": (lambda: b"<!DOCTYPE html><title>404", "a web page"),
    "git lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "text": ("naïve".encode, "an unknown format"),
}


@pytest.mark.parametrize(("content", "kind"), DISGUISED.values(), ids=DISGUISED)
def test_read_names_other_formats(path: Path, content: Callable[[], bytes], kind: str) -> None:
    """A file of another format is rejected with the name of that format."""
    path.write_bytes(content())
    with pytest.raises(BadParams, match=f"not a .params file but {kind}"):
        read_params(path)


def test_read_does_not_load_a_pickle(path: Path) -> None:
    """Code in a pickle does not run."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(path.with_name("boom")),))

    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadParams, match="a Python pickle"):
        read_params(path)
    assert not path.with_name("boom").exists()


def test_read_rejects_what_is_not_a_file(path: Path) -> None:
    """A directory, a missing file, and a pipe, which would block a reader forever."""
    with pytest.raises(BadParams, match="not a regular file"):
        read_params(path.parent)
    with pytest.raises(BadParams, match="No such file or directory"):
        read_params(path)
    os.mkfifo(path)
    with pytest.raises(BadParams, match="not a regular file"):
        read_params(path)


def test_read_rejects_a_file_over_the_limit(path: Path) -> None:
    """Before any of it is read."""
    path.write_bytes(forged_file())
    size = path.stat().st_size
    assert read_params(path, max_bytes=size)
    with pytest.raises(BadParams, match=f"{size} bytes are more than the {size - 1} allowed"):
        read_params(path, max_bytes=size - 1)
    os.truncate(path, 1 << 40)  # a terabyte of holes
    with pytest.raises(BadParams, match=r"more than the 1,073,741,824 allowed"):
        read_params(path)


def test_read_rejects_a_file_that_shrinks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is taken before the file is read; missing bytes are an error."""
    path.write_bytes(forged_file())
    size_of = os.fstat
    asked: list[int] = []

    def then_cut(file: int) -> os.stat_result:
        status = size_of(file)
        asked.append(file)
        if len(asked) == 2:  # the first time is for what kind of file it is
            os.truncate(path, 40)
        return status

    monkeypatch.setattr(os, "fstat", then_cut)
    with pytest.raises(BadParams, match="was truncated while the shape of array 1 of 1 was read"):
        read_params(path)


@pytest.mark.slow
def test_read_rejects_a_truncated_network(path: Path) -> None:
    """Cut off every few kilobytes, and around the end of every array and every name."""
    arrays = network()
    write_params(path, arrays)
    assert same(read_params(path), arrays)
    size = path.stat().st_size
    borders = [24]
    for array in arrays.values():
        borders.append(borders[-1] + len(forged_array(shape=array.shape, data=b"")) + array.nbytes)
    borders.append(borders[-1] + 8)
    for name in arrays:
        borders.append(borders[-1] + len(forged_name(name.encode())))
    assert borders[-1] == size
    near = {border + step for border in borders for step in (-8, -1, 0, 1, 4, 8)}
    cuts = {cut for cut in near | set(range(0, size, 4096)) if 0 <= cut < size}
    assert len(cuts) > 1000
    for cut in sorted(cuts, reverse=True):
        os.truncate(path, cut)
        with pytest.raises(BadParams):
            read_params(path)


@pytest.mark.parametrize("sound", sound_files()[:4], ids=len)
def test_read_rejects_a_file_truncated_at_any_byte(path: Path, sound: bytes) -> None:
    """No prefix of a file is a file."""
    for cut in range(len(sound)):
        path.write_bytes(sound[:cut])
        with pytest.raises(BadParams):
            read_params(path)


def test_read_rejects_a_flipped_bit_in_the_structure(path: Path) -> None:
    """Every bit of two arrays' structure, but for the two fields that hold no structure.

    The device is where the array once was. float32 and int32 are one bit apart and as long as
    each other; `check_params` tells them apart, and a checksum tells all of it.
    """
    data = np.arange(1, 7, dtype=np.float32).tobytes()
    head = len(forged_array(b"", shape=(2, 3)))
    sound = forged_file([forged_array(data, shape=(2, 3))] * 2, [forged_name(b"a"), ONE[:8] + b"b"])
    second = 24 + head + len(data)
    names = second + head + len(data)
    structure = [
        *range(24 + head),
        *range(second, second + head),
        *range(names, names + 16),
        *range(names + 17, names + 25),
    ]
    passed = []
    for at in structure:
        for bit in range(8):
            content = bytearray(sound)
            content[at] ^= 1 << bit
            path.write_bytes(content)
            try:
                arrays = read_params(path)
            except BadParams:
                continue
            passed.append((at if at < second else at - second + 24, bit))
            assert {name: a.tobytes() for name, a in arrays.items()} == {"a": data, "b": data}
    device, device_id, code = (24 + head - back for back in (12, 8, 4))
    harmless = [(device, 1), (device, 2)] + [(device_id, bit) for bit in range(8)]
    assert sorted(passed) == sorted(2 * [*harmless, (code, 2)])


@pytest.mark.slow
def test_read_handles_two_thousand_damaged_files(path: Path) -> None:
    """Each is read or rejected, in little time and memory. fuzz_params.py tries more."""
    dice = random.Random(1)
    read = 0
    for _ in range(2000):
        path.write_bytes(damaged(dice, dice.choice(sound_files())))
        read += examine(path)
    assert 50 < read < 1000, "damage that always or never shows proves little"


@MANY
@given(st.binary(max_size=300), st.sampled_from([b"", HEADER, HEADER + b"\1" + bytes(7)]))
def test_read_rejects_random_bytes(path: Path, soup: bytes, start: bytes) -> None:
    """No output of a random generator is accepted."""
    path.write_bytes(start + soup)
    assert not examine(path)


@pytest.mark.slow
def test_read_accepts_the_maximum_number_of_arrays(path: Path) -> None:
    """With the smallest arrays it takes seconds and 16 MiB at most."""
    one = forged_array(b"\1", version=V3, shape=(), code=3)
    names = [forged_name(str(at).encode()) for at in range(MAX_ARRAYS)]
    path.write_bytes(forged_file([one] * MAX_ARRAYS, names))
    tracemalloc.start()
    assert len(read_params(path)) == MAX_ARRAYS
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 24


def test_read_takes_as_much_memory_as_the_file(path: Path) -> None:
    """Peak memory is the size of the file, since every array is read directly."""
    write_params(path, network())
    tracemalloc.start()
    arrays = read_params(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * path.stat().st_size
    assert not any(array.flags.writeable for array in arrays.values())


# Writing


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "0 arrays: a file can contain 1 to 16384"),
        ({"": np.ones(1)}, "'' cannot be the name"),
        ({"a" * (MAX_NAME + 1): np.ones(1)}, "a' cannot be the name"),
        ({"a\0b": np.ones(1)}, "cannot be the name"),
        ({"\ud800": np.ones(1)}, "cannot be the name"),
        ({"a": np.array(1.0)}, r"cannot store float64 \(\)"),
        ({"a": np.ones((2, 0))}, r"cannot store float64 \(2, 0\)"),
        ({"a": np.ones(2, np.complex64)}, r"cannot store complex64 \(2,\)"),
        ({"a": np.array([None])}, r"cannot store object \(1,\)"),
        ({"fine": np.ones(1), "a": np.ones(2, bool)}, r"cannot store bool \(2,\)"),
    ],
    ids=str,
)
def test_write_keeps_the_old_file_if_arrays_cannot_be_stored(
    path: Path, arrays: Arrays, words: str
) -> None:
    """Arrays that could not be read back are rejected, and no partial file remains."""
    write_params(path, {"old": np.ones(1)})
    with pytest.raises(ValueError, match=words):
        write_params(path, arrays)
    assert list(read_params(path)) == ["old"]
    assert os.listdir(path.parent) == [path.name]


def test_write_keeps_the_old_file_if_the_disk_is_full(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No partial file remains."""
    write_params(path, {"old": np.ones(1)})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_params(path, {"new": np.ones(1)})
    assert list(read_params(path)) == ["old"]
    assert os.listdir(path.parent) == [path.name]


def test_write_does_not_change_an_open_file(path: Path) -> None:
    """The new file replaces the name of the old one, not its bytes."""
    write_params(path, {"old": np.ones(1)})
    before = path.read_bytes()
    with path.open("rb") as old:
        write_params(path, {"new": np.ones(1)})
        assert old.read() == before
    assert list(read_params(path)) == ["new"]


# Fitting a network

EXPECTED = {"weight": (2, 3), "bias": (2,)}
RIGHT: Arrays = {"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float16)}


def test_check_params_accepts_arrays_that_fit() -> None:
    """Names may be in any order; the caller casts half and double precision."""
    check_params(RIGHT, EXPECTED)
    check_params(dict(reversed(RIGHT.items())), EXPECTED)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bias": None}, "missing: bias"),
        ({"gamma": np.ones(2)}, "unexpected: gamma"),
        ({"bias": np.ones(3)}, r"another shape: bias \(3,\) instead of \(2,\)"),
        ({"weight": np.ones((3, 2))}, r"another shape: weight \(3, 2\) instead of \(2, 3\)"),
        ({"bias": np.ones(2, np.int32)}, "not floating point: bias int32"),
        ({"bias": np.array([1, np.nan])}, "not finite: bias"),
        ({"bias": np.array([1, -np.inf], np.float16)}, "not finite: bias"),
        ({"bias": np.array([1, 1e39])}, "not finite: bias"),
        ({"bias": None, "b": np.ones(1)}, "missing: bias; unexpected: b"),
        ({f"x{at}": np.ones(1) for at in range(9)}, "unexpected: x0, x1, x2 and 6 more"),
    ],
    ids=str,
)
def test_check_params_lists_what_does_not_fit(change: dict[str, Any], words: str) -> None:
    """One message with all kinds of faults and the first few names of each."""
    arrays = {name: array for name, array in (RIGHT | change).items() if array is not None}
    with pytest.raises(BadParams, match=words):
        check_params(arrays, EXPECTED)


def test_sha256_is_that_of_sha256sum(path: Path) -> None:
    """For a file longer than one block."""
    path.write_bytes(content := random.Random(1).randbytes((1 << 20) + 1))
    assert sha256(path) == hashlib.sha256(content).hexdigest()
