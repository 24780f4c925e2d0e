"""One target for libFuzzer by way of atheris: what `fuzz.py` runs, one process a target.

    python -m tests.faults.fuzz_target decode CORPUS SEEDS -max_total_time=60

Each target holds a promise for any bytes whatever; what breaks it is an exception.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["service", "model_store", "python_multipart", "PIL"]):
    from model_store.params import BadParams, read_params
    from service import decode
    from service.errors import MissingImage
    from service.form import Form, boundary

MAX_PIXELS = 250_000
KNOWN = decode.BadImage, decode.UnsupportedImageType, decode.ImageTooLarge
_fuzz = pathlib.Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}.params"


def decodes(data: bytes) -> None:
    """An image of 32 x 32, or one of three exceptions."""
    try:
        image = decode.identify(data, MAX_PIXELS).decode()
    except KNOWN:
        return
    assert image.shape == (32, 32, 3) and image.dtype == "uint8"


def reads_forms(data: bytes) -> None:
    """A form is the same whether it comes whole or in pieces; the first byte says of what size, and
    the first line is its Content-Type."""
    size, (kind, _, body) = 1 + (data[0] if data else 0), data[1:].partition(b"\n")
    try:
        delimiter = boundary("multipart/form-data; boundary=" + kind.decode("latin-1"))
    except MissingImage:
        return
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    assert _form(delimiter, [body]) == _form(delimiter, pieces)


def _form(delimiter: bytes, pieces: list[bytes]) -> list[bytes] | None:
    form = Form(delimiter, sum(map(len, pieces)), most=2)
    try:
        for piece in pieces:
            form.write(piece)
        return form.images()
    except MissingImage:
        return None


def reads_params(data: bytes) -> None:
    """Arrays, or BadParams."""
    _fuzz.write_bytes(data)
    with contextlib.suppress(BadParams):
        read_params(_fuzz)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decode": decodes,
    "form": reads_forms,
    "params": reads_params,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    atheris.Setup([name, *arguments], TARGETS[name])
    atheris.Fuzz()
