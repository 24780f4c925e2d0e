"""Params: reads and writes `.params` files, which contain a neural network's parameters.

This module does not need MXNet, and does not trust files. `read_params` returns all arrays of a
valid file. If a file is invalid, `read_params` raises `BadParams`, and the message says which file,
what is wrong and what to do. Each length in the file is compared with the number of remaining bytes
before memory is allocated, so reading a file takes about as much memory as the file has bytes.

`write_params` writes files that MXNet's `mx.nd.load` and `load_parameters` can read. A file is
written completely or not at all, and the same arrays always give the same bytes. `check_params`
checks that arrays fit a network. `Source.sha256` returns the checksum of the bytes that were read.
Names of arrays are not changed: prefixes such as `arg:` and `aux:` are kept.

The format is MXNet's list of arrays, as `NDArray::Save` and `NDArray::Load` define it
(src/ndarray/ndarray.cc in Apache MXNet 1.x). Numbers are little-endian. There is no padding and no
alignment:

    file     u64 0x112, u64 0, u64 count, array * count, u64 count, name * count
    array    u32 version, i32 storage, i32 ndim, i64 * ndim, i32 device, i32 device id,
             i32 element type, the elements in C order
    name     u64 bytes, UTF-8

This module supports dense arrays of the element types in `TYPES`, in the format versions 2 and 3.
Version 2 is written by `net.save_parameters`, `net.export` and `mx.nd.save`. Version 3 is written
by the same functions in NumPy mode, and also allows arrays without dimensions. The module rejects
files of MXNet before 1.0, sparse arrays, arrays without names or without elements, more than
`MAX_ARRAYS` arrays, and names that are longer than `MAX_NAME` bytes or not printable.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from model_store.files import open_regular

Arrays = dict[str, NDArray[Any]]

MAX_BYTES = 1 << 30
MAX_ARRAYS = 1 << 14
MAX_NAME = 1 << 10
MAX_NDIM = 32  # the maximum of NumPy 1.x

HEADER = struct.pack("<2Q", 0x112, 0)
VERSION_1, VERSION_2, VERSION_3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DENSE, ROW_SPARSE, CSR = range(3)
CPU = 1
DEVICES = (CPU, 2, 3, 5)  # gpu, cpu_pinned, cpu_shared
MAX_DEVICE_ID = 255
TYPES = {
    code: np.dtype(name)
    for code, name in enumerate(("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8"))
}
CODES = {dtype: code for code, dtype in TYPES.items()}

SAVE_AGAIN = "Copy the file again, or write it again with net.save_parameters(...)"
WRITE_ONE = "Write a .params file with net.save_parameters(...) in MXNet"
LOAD_AND_SAVE = "Load the file with MXNet 1.x and write it again with net.save_parameters(...)"
SAVE_A_DICT = "Save a dict, not a list: mx.nd.save(path, {name: array})"
OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive (.npz, or PyTorch's .pt)",
    b"\x80": "a Python pickle, which can run code when it is opened",
    b"\x93NUMPY": "a NumPy .npy file",
    b"\x89HDF": "an HDF5 file (Keras, .h5)",
    b"\x1f\x8b": "a gzip archive",
    b"version https://": "a Git LFS pointer, which `git lfs pull` replaces with the file",
    b"{": "JSON, such as the network's -symbol.json",
    b"<": "a web page, such as the error page of a failed download",
}


class BadParams(Exception):
    """The file or its arrays cannot be used. The message says what is wrong and what to do."""


def read_params(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Arrays:
    """Return all arrays of a file by name, in the file's order. The arrays are read-only.

    Args:
        path: Path of the file.
        max_bytes: Maximum size of the file in bytes.

    Raises:
        BadParams: The file cannot be read, is invalid, or is too large.
    """
    with opened(path, max_bytes=max_bytes) as source:
        return source.arrays()


@contextmanager
def opened(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Iterator[Source]:
    """Open a file, without reading it yet. Arguments and errors are as in `read_params`."""
    path = Path(path)
    try:
        with open_regular(path) as raw:
            source = Source(path, raw)
            if source.size > max_bytes:
                what = f"{source.size:,} bytes are more than the {max_bytes:,} allowed"
                raise source.bad(what, "Check that this is the right file")
            yield source
    except OSError as error:
        raise BadParams(f"{path}: {error.strerror}. Check the path and its permissions") from error


def check_params(
    arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that all names and shapes are as expected and that all values are finite floats.

    Args:
        arrays: Arrays by name.
        expected: Shapes of the network's parameters by name.

    Raises:
        BadParams: The arrays do not fit the network.
    """
    shared = [name for name in expected if name in arrays]
    floats = [name for name in shared if arrays[name].dtype.kind == "f"]
    faults = {
        "missing": [name for name in expected if name not in arrays],
        "unexpected": [name for name in arrays if name not in expected],
        "another shape": [
            f"{name} {arrays[name].shape} instead of {tuple(expected[name])}"
            for name in shared
            if arrays[name].shape != tuple(expected[name])
        ],
        "not floating point": [
            f"{name} {arrays[name].dtype}" for name in shared if arrays[name].dtype.kind != "f"
        ],
        "not finite": [name for name in floats if not _is_finite(arrays[name])],
    }
    if listed := "; ".join(f"{what}: {_first(names)}" for what, names in faults.items() if names):
        raise BadParams(
            f"The parameters do not fit the network ({listed}). Check the architecture, the number "
            "of classes, and that the training run converged"
        )


def write_params(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to a file. If writing fails, an existing file remains unchanged.

    Args:
        path: Path of the file.
        arrays: Arrays by name.

    Raises:
        ValueError: The format cannot store the arrays.
    """
    path = Path(path)
    if not 0 < len(arrays) <= MAX_ARRAYS:
        raise ValueError(f"{len(arrays)} arrays: a file can contain 1 to {MAX_ARRAYS}")
    # The temporary file is in the same folder, because a rename is atomic only in one file system.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(HEADER + struct.pack("<Q", len(arrays)))
            for name, array in arrays.items():
                _write_array(file, name, array)
            file.write(struct.pack("<Q", len(arrays)))
            for name in arrays:
                _write_name(file, name)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Source:
    """An open file. Reading past the end raises BadParams before memory is allocated."""

    def __init__(self, path: Path, raw: BinaryIO) -> None:
        """
        Args:
            path: Path that error messages show.
            raw: Regular file that is open for reading, at its first byte.
        """
        self._path = path
        self._raw = raw
        self._digest = hashlib.sha256()
        self.size = self.left = os.fstat(raw.fileno()).st_size

    def arrays(self) -> Arrays:
        """Return all arrays of the file by name, as in `read_params`. Raises BadParams."""
        return _read_list(self)

    def sha256(self) -> str:
        """Return the SHA-256 of the bytes read so far, in hexadecimal.

        After a call of `arrays`, all bytes of the file have been read.
        """
        return self._digest.hexdigest()

    def bad(self, what: str, do: str = SAVE_AGAIN) -> BadParams:
        """Return an error about this file that says what is wrong and what to do."""
        return BadParams(f"{self._path}: {what}. {do}")

    def take(self, length: int, what: str) -> bytes:
        """Return the next `length` bytes. `what` names these bytes in error messages."""
        if length > self.left:
            raise self.bad(f"{what} needs {length:,} bytes, but only {self.left:,} remain")
        taken = self._raw.read(length)
        if len(taken) != length:
            raise self.bad(f"the file was truncated while {what} was read")
        self.left -= length
        self._digest.update(taken)
        return taken

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        """Return the next fields. `layout` is a format of `struct`, and `what` is as in `take`."""
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))


def _read_list(source: Source) -> Arrays:
    _check_kind(source)
    (count,) = source.unpack("<Q", "the number of arrays")
    if not 0 < count <= MAX_ARRAYS:
        raise source.bad(f"the file declares {count:,} arrays; 1 to {MAX_ARRAYS:,} are allowed")
    arrays = [_read_array(source, f"array {at} of {count}") for at in range(1, count + 1)]

    (named,) = source.unpack("<Q", "the number of names")
    if named != count:
        do = SAVE_AGAIN if named else SAVE_A_DICT
        raise source.bad(f"the file has {count:,} arrays but {named:,} names", do)
    result: Arrays = {}
    for at, array in enumerate(arrays, start=1):
        name = _read_name(source, f"name {at} of {count}")
        if name in result:
            raise source.bad(f"the name {name!r} occurs twice")
        result[name] = array
    if source.left:
        raise source.bad(f"unexpected data at the end of the file ({source.left:,} B)")
    return result


def _check_kind(source: Source) -> None:
    header = source.take(min(len(HEADER), source.left), "the header")
    if not HEADER.startswith(header):
        kinds = (kind for prefix, kind in OTHER_FORMATS.items() if header.startswith(prefix))
        kind = next(kinds, "an unknown format")
        raise source.bad(f"this is not a .params file but {kind}", WRITE_ONE)
    if len(header) < len(HEADER):
        raise source.bad("the file ends inside its header" if header else "the file is empty")


def _read_array(source: Source, what: str) -> NDArray[Any]:
    (version,) = source.unpack("<I", what)
    if version == VERSION_1 or 0 < version <= MAX_NDIM:  # the oldest format has ndim here
        raise source.bad(f"{what} was written by MXNet before 1.0", LOAD_AND_SAVE)
    if version not in (VERSION_2, VERSION_3):
        raise source.bad(f"{what} begins with {version:#x}, which is not a version of the format")
    storage, ndim = source.unpack("<2i", what)
    if storage in (ROW_SPARSE, CSR):
        raise source.bad(f"{what} is sparse", "Convert the array with array.tostype('default')")
    if storage != DENSE:
        raise source.bad(f"{what} has the unknown storage type {storage}")
    min_ndim = 0 if version == VERSION_3 else 1  # in version 2, 0 means an unknown shape
    if not min_ndim <= ndim <= MAX_NDIM:
        raise source.bad(f"{what} has {ndim} dimensions")
    shape = source.unpack(f"<{ndim}q", f"the shape of {what}")
    if any(length < 1 for length in shape):
        raise source.bad(f"{what} has no elements: its shape is {shape}")
    device, device_id, code = source.unpack("<3i", what)
    if device not in DEVICES or not 0 <= device_id <= MAX_DEVICE_ID:
        raise source.bad(f"{what} was saved from the unknown device {device}:{device_id}")
    if code not in TYPES:
        raise source.bad(
            f"{what} has the element type {code}", "Cast the array to float32 and save it again"
        )
    dtype = TYPES[code]
    elements = source.take(prod(shape) * dtype.itemsize, f"{what}, {dtype} {shape},")
    return np.frombuffer(elements, dtype).reshape(shape)


def _read_name(source: Source, what: str) -> str:
    (length,) = source.unpack("<Q", what)
    if not 0 < length <= MAX_NAME:
        raise source.bad(f"{what} is {length:,} bytes long; 1 to {MAX_NAME:,} are allowed")
    encoded = source.take(length, what)
    try:
        name = encoded.decode()
    except UnicodeDecodeError:
        raise source.bad(f"{what} is not UTF-8: {encoded[:40]!r}") from None
    # MXNet ends a name at a NUL byte, so MXNet would load another name than this module returns.
    if not name.isprintable():
        raise source.bad(f"{what} is not printable: {name[:40]!r}")
    return name


def _write_array(file: BinaryIO, name: str, array: NDArray[Any]) -> None:
    dtype = array.dtype.newbyteorder("<")
    if dtype not in CODES or not array.size or not 0 < array.ndim <= MAX_NDIM:
        raise ValueError(f"{name!r}: a .params file cannot store {array.dtype} {array.shape}")
    shape = struct.pack(f"<i{array.ndim}q", array.ndim, *array.shape)
    file.write(struct.pack("<Ii", VERSION_2, DENSE) + shape)
    file.write(struct.pack("<3i", CPU, 0, CODES[dtype]))
    file.write(np.ascontiguousarray(array, dtype).data)


def _write_name(file: BinaryIO, name: str) -> None:
    if not name.isprintable() or not 0 < len(encoded := name.encode()) <= MAX_NAME:
        raise ValueError(f"{name[:40]!r} cannot be the name of an array")
    file.write(struct.pack("<Q", len(encoded)) + encoded)


def _is_finite(array: NDArray[Any]) -> bool:
    with np.errstate(over="ignore"):  # the network computes in float32, where 1e300 is infinite
        return bool(np.isfinite(array.astype(np.float32, copy=False)).all())


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
