"""Files: reads and writes a version's files for ONNX Runtime, and records probe probabilities.

The files are computed from the parameters. MXNet is not needed, but the package `onnx` is needed to
write them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from model_store import probes, versions
from model_store.batch import BatchFormat, Image, Rows
from model_store.manifest import Manifest, OnnxFile, PrecisionName
from model_store.onnx import writer
from model_store.onnx.file import verified
from model_store.onnx.quantization import quantize
from model_store.onnx.runtime import is_installed, load_onnxruntime
from model_store.onnx.session import INPUT, OUTPUT, open_session
from model_store.params import Arrays

NAMES: Mapping[PrecisionName, str] = {
    "fp32": "net.onnx",
    "fp16": "net.fp16.onnx",
    "int8": "net.int8.onnx",
}
BATCH = 64
"""Number of images that `probabilities` runs at the same time."""


def can_write() -> bool:
    """Whether the packages `onnx` and `onnxruntime` are installed, without importing them."""
    return is_installed() and importlib.util.find_spec("onnx") is not None


def read(folder: pathlib.Path, described: OnnxFile) -> bytes:
    """Return the verified content of a version's ONNX file.

    Raises:
        BadModel: The file is not the file that the manifest describes, or is invalid.
    """
    path = folder / described.file
    content = versions.read_file(path, described)
    verified(content, path)
    return content


def write(
    folder: pathlib.Path, model: Manifest, arrays: Arrays, calibration: Image | None = None
) -> dict[PrecisionName, OnnxFile]:
    """Write a version's ONNX files to its folder, and return their descriptions for the manifest.

    The descriptions contain the probabilities of the probe images. The files are in fp32, in fp16
    and, if there are calibration images, in int8.

    Args:
        folder: Folder of the version.
        model: The version's manifest.
        arrays: Parameters by name.
        calibration: Images on which the ranges for int8 are observed, uint8 (n, 32, 32, 3). None:
            no file in int8 is written.

    Raises:
        BadModel: The architecture is unknown, or ONNX Runtime cannot run the network.
        BadParams: The parameters do not fit the architecture.
    """
    contents: dict[PrecisionName, bytes] = {
        "fp32": writer.fp32(model, arrays),
        "fp16": writer.fp16(model, arrays),
    }
    if calibration is not None:
        contents["int8"] = quantize(contents["fp32"], calibration)
    described = {}
    for precision, content in contents.items():
        (folder / NAMES[precision]).write_bytes(content)
        described[precision] = OnnxFile(
            file=NAMES[precision],
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            probes=probes.record(probabilities(content, model, probes.images())),
        )
    return described


def probabilities(content: bytes, model: Manifest, images: Image, threads: int = 1) -> Rows:
    """Compute the probabilities of images on the CPU, float32 (n, classes).

    On a CPU, ONNX Runtime computes a network in fp16 with float32 operators and rounds the results
    to float16, similarly to a GPU.

    Args:
        content: Content of an ONNX file.
        model: Manifest with the classes and the temperature.
        images: uint8 (n, 32, 32, 3).
        threads: Number of CPU threads.

    Raises:
        BadModel: ONNX Runtime cannot run the network.
    """
    session = open_session(load_onnxruntime(), content, threads, "the ONNX file")
    parts = np.array_split(images, range(BATCH, len(images), BATCH))
    logits: list[Any] = [session.run([OUTPUT], {INPUT: part})[0] for part in parts]
    return BatchFormat(model, [BATCH]).probabilities(np.concatenate(logits))
