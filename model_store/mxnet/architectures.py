"""Architectures: builds GluonCV's networks for CIFAR with MXNet.

Importing the package `gluoncv` also imports libraries for video, tables and OpenCV, and makes
Pillow accept truncated images. The networks for CIFAR are defined in three files that need only
MXNet. This module loads these files without the package, which saves 0.6 s and 100 MB at every
start (docs/decisions/0001-gluoncv-without-its-package.md).

Architectures and parameters have the same names as in GluonCV. A `.params` file that was saved from
`gluoncv.model_zoo.get_model(name, classes=...)` can be loaded here, and vice versa.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from types import ModuleType
from typing import Any

from model_store.architectures import UnknownArchitecture
from model_store.mxnet.runtime import load_mxnet

FILES = {
    "cifarresnet": tuple(
        f"cifar_resnet{depth}_v{version}" for version in (1, 2) for depth in (20, 56, 110)
    ),
    "cifarwideresnet": tuple(f"cifar_wideresnet{kind}" for kind in ("16_10", "28_10", "40_8")),
    "cifarresnext": ("cifar_resnext29_32x4d", "cifar_resnext29_16x64d"),
}
OTHERS = {"cifar_wideresnet16_3": (16, 3)}
"""Wide networks that GluonCV can build but has no name for: name -> layers and width factor."""


def build(architecture: str, classes: int, **gluon: Any) -> Any:
    """Return a new network whose parameters have no values yet.

    The network returns float32 logits (n, classes) for float32 (n, 3, 32, 32).

    Args:
        architecture: One of `model_store.architectures.ARCHITECTURES`.
        classes: Number of classes.
        gluon: Arguments `prefix` and `params` of Gluon's Block. With `params`, the network shares
            the parameters of another network.

    Raises:
        UnknownArchitecture: There is no such architecture.
        BackendUnavailable: MXNet cannot be imported.
        ModuleNotFoundError: GluonCV is not installed.
    """
    if architecture in OTHERS:
        wide = _zoo("cifarwideresnet").get_cifar_wide_resnet
        return wide(*OTHERS[architecture], classes=classes, **gluon)
    for file, names in FILES.items():
        if architecture in names:
            return getattr(_zoo(file), architecture)(classes=classes, **gluon)
    raise UnknownArchitecture(architecture)


def _zoo(file: str) -> ModuleType:
    """Import `gluoncv/model_zoo/<file>.py` without the package `gluoncv`, and return the module."""
    name = f"model_store._gluoncv_{file}"
    if name in sys.modules:
        return sys.modules[name]
    load_mxnet(threads=1)  # does nothing if MXNet is already loaded
    package = importlib.util.find_spec("gluoncv")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("GluonCV is not installed: pip install gluoncv==0.10.5.post0")
    path = pathlib.Path(package.submodule_search_locations[0], "model_zoo", f"{file}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module
