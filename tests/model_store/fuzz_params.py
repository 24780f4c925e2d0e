"""Damages `.params` files and reads them: python -m tests.model_store.fuzz_params --seconds 600

Checks the guarantees of `model_store.params` with any file: reading it returns arrays or raises
BadParams, takes little time and memory, and arrays that were read can be written and read again.
The same seed gives the same files. The first file that breaks a guarantee is kept, and its path is
printed. This module also builds the valid and the forged files of the tests.
"""

from __future__ import annotations

import argparse
import os
import random
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from model_store.params import MAX_NAME, BadParams, read_params, write_params
from tests.model_store.bounds import bounded

V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
# On a disk, writing the file again and again would take most of the time.
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 (mkdtemp in it)
SLACK = 1 << 16  # bytes beyond twice the file's size: buffers, names, array objects
SECONDS = 1.0  # of CPU, for a file of a few KiB that takes a tenth of a millisecond
WORDS = [0, 1, 2, 8, 31, 32, 33, 255, 256, 0xFFFF, 1 << 20, 1 << 31, (1 << 32) - 1, 0x112, V1, V2]
WORDS += [V3, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1]


def forged_array(
    data: bytes = b"\0\0\x80?",
    *,
    version: int = V2,
    storage: int = 0,
    shape: Sequence[int] = (1,),
    ndim: int | None = None,
    device: tuple[int, int] = (1, 0),
    code: int = 0,
) -> bytes:
    """One array in the format, in which every field can be forged."""
    dims = struct.pack(f"<i{len(shape)}q", len(shape) if ndim is None else ndim, *shape)
    return struct.pack("<Ii", version, storage) + dims + struct.pack("<3i", *device, code) + data


def forged_name(name: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(name) if length is None else length) + name


def forged_file(
    arrays: Sequence[bytes] = (forged_array(),),
    names: Sequence[bytes] = (forged_name(b"a"),),
    *,
    magic: int = 0x112,
    reserved: int = 0,
    count: int | None = None,
    named: int | None = None,
) -> bytes:
    head = struct.pack("<3Q", magic, reserved, len(arrays) if count is None else count)
    tail = struct.pack("<Q", len(names) if named is None else named)
    return head + b"".join(arrays) + tail + b"".join(names)


def sound_files(versions: Sequence[int] = (V2, V3)) -> list[bytes]:
    """Small files with every element type, so that most damage hits the structure."""
    kinds = [
        forged_array(bytes(range(2 * 3 * size)), shape=(2, 3), code=code, version=version)
        for code, size in enumerate((4, 8, 2, 1, 4, 1, 8))
        for version in versions
    ]
    names = [forged_name(f"features.{at}.weight".encode()) for at in range(len(kinds))]
    return [
        forged_file(),
        forged_file(kinds[:3], names[:3]),
        forged_file(kinds, names),
        forged_file([forged_array(version=versions[-1], shape=(1,) * (versions[-1] == V2))]),
        forged_file([forged_array(bytes(4 * 1000), shape=(10, 1, 100))]),
    ]


def damaged(dice: random.Random, sound: bytes) -> bytes:
    """The file with one to four changes, more often at its ends than in its middle."""
    content = bytearray(sound)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 4))):
        if not content:
            break
        at = min(dice.randrange(len(content)) for _ in range(dice.choice((1, 2))))
        if dice.random() < 0.25:
            at = len(content) - 1 - at
        dice.choice(DAMAGES)(dice, content, at)
    return bytes(content)


def _flip(dice: random.Random, content: bytearray, at: int) -> None:
    content[at] ^= 1 << dice.randrange(8)


def _put(dice: random.Random, content: bytearray, at: int) -> None:
    content[at] = dice.randrange(256)


def _number(dice: random.Random, content: bytearray, at: int) -> None:
    size = dice.choice((4, 8))
    at = at // 4 * 4 if dice.random() < 0.8 else at
    content[at : at + size] = (dice.choice(WORDS) % (1 << 8 * size)).to_bytes(size, "little")


def _cut(dice: random.Random, content: bytearray, at: int) -> None:
    del content[at:]


def _drop(dice: random.Random, content: bytearray, at: int) -> None:
    del content[at : at + dice.choice((1, 4, 8, 16, 60))]


def _repeat(dice: random.Random, content: bytearray, at: int) -> None:
    content[at:at] = content[at : at + dice.choice((1, 4, 8, 16, 60))]


def _insert(dice: random.Random, content: bytearray, at: int) -> None:
    content[at:at] = dice.randbytes(dice.choice((1, 4, 8, 40)))


Damage = Callable[[random.Random, bytearray, int], None]
DAMAGES: list[Damage] = [_flip, _flip, _put, _number, _number, _cut, _drop, _repeat, _insert]


def examine(path: Path) -> bool:
    """Whether the file is read. Any exception but BadParams means that a guarantee is broken."""
    size = path.stat().st_size
    arrays, refusal = {}, ""
    with bounded(size, SECONDS, 2 * size + SLACK):
        try:
            arrays = read_params(path)
        except BadParams as error:
            refusal = str(error)
    if refusal:
        assert refusal.startswith(f"{path}: ") and len(refusal) < len(str(path)) + 1000
        return False

    assert 0 < sum(array.nbytes for array in arrays.values()) < size
    assert all(0 < len(name.encode()) <= MAX_NAME and name.isprintable() for name in arrays)
    # Version 2, the one that is written, knows no arrays without dimensions.
    arrays = {name: array if array.ndim else array[None] for name, array in arrays.items()}
    write_params(path, arrays)
    again = read_params(path)
    assert list(again) == list(arrays)
    for name, array in arrays.items():
        assert (again[name].dtype, again[name].shape) == (array.dtype, array.shape)
        assert again[name].tobytes() == array.tobytes()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Damage .params files at random, and read the files."
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    files = sound_files()
    counts: Counter[str] = Counter()
    path = Path(tempfile.mkdtemp(dir=IN_MEMORY), "net.params")
    until = time.monotonic() + options.seconds
    while time.monotonic() < until:
        path.write_bytes(content := damaged(dice, dice.choice(files)))
        try:
            counts["read" if examine(path) else "refused"] += 1
        except BaseException:
            path.write_bytes(content)  # which a round trip may have replaced
            print(f"seed {options.seed}, after {sum(counts.values()):,} files: {path}")
            raise
    path.unlink()
    path.parent.rmdir()
    print(
        f"{sum(counts.values()):,} files, seed {options.seed}: {dict(counts)}, no guarantee broken"
    )


if __name__ == "__main__":
    main()
