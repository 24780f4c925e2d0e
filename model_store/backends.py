"""Backends: chooses the library that runs neural networks.

A user requests `auto`, `mxnet` or `onnxruntime`. `auto` considers the backends that are installed
and can run the version, and selects the backend that can use the best device. A GPU that can
compute is better than a CPU. If both backends can use the same device, `auto` selects MXNet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from model_store.backend import Backend, BackendChoice, BackendUnavailable, Request
from model_store.device import DeviceUnavailable
from model_store.manifest import BackendName, BadModel, Manifest
from model_store.mxnet import backend as mxnet
from model_store.onnx import backend as onnx
from model_store.precision import is_offered


class BackendModule(Protocol):
    """The module `backend` of each backend. Only `start` imports the library."""

    INSTALL: str
    """Instruction for error messages: what to install."""

    def is_installed(self) -> bool: ...

    def may_reach_gpu(self) -> bool: ...

    def why_not(self, model: Manifest) -> str | None: ...

    def start(self, request: Request) -> Backend: ...


MODULES: dict[BackendName, BackendModule] = {"mxnet": mxnet, "onnxruntime": onnx}
"""Modules of the backends. `auto` prefers the first backend."""
CHOICES = ("auto", *MODULES)
"""Backends that a user can request."""


def able(model: Manifest) -> list[BackendName]:
    """Return the installed backends that can run a version, the preferred backend first.

    Raises:
        BackendUnavailable: There is none.
    """
    reasons = {name: _why_not(name, model) for name in MODULES}
    names = [name for name, reason in reasons.items() if reason is None]
    if not names:
        told = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
        raise BackendUnavailable(f"no backend can run this version: {told}")
    return names


def installed() -> list[BackendName]:
    """Return the installed backends, the preferred backend first."""
    return [name for name, module in MODULES.items() if module.is_installed()]


def start(wanted: str, request: Request) -> tuple[Backend, BackendChoice]:
    """Choose and start a backend. This function must be called on the thread of the first lane.

    Args:
        wanted: One of `CHOICES`.
        request: The version to run, and the options for running it.

    Raises:
        ValueError: `wanted` is not one of `CHOICES`, or the name of the device is invalid.
        BackendUnavailable: The backend is not installed, or cannot run the version.
        DeviceUnavailable: The device is missing or cannot compute.
        PrecisionUnavailable: The precision is not available for the version.
    """
    if wanted not in CHOICES:
        raise ValueError(f"backend {wanted!r} is not one of {', '.join(CHOICES)}")
    if wanted != "auto":
        name = next(name for name in MODULES if name == wanted)
        if reason := _why_not(name, request.model):
            raise BackendUnavailable(f"backend {name} was requested, but {name} {reason}")
        return MODULES[name].start(request), BackendChoice(name, "as requested")
    return _best(able(request.model), request)


def check(name: BackendName, model: Manifest) -> None:
    """Raise BadModel if a backend that already runs cannot run another version."""
    if reason := MODULES[name].why_not(model):
        raise BadModel(
            f"{model.name} {model.version}: this process runs {name}, which {reason}. Start the "
            "service with another backend"
        )


def _best(names: Sequence[BackendName], request: Request) -> tuple[Backend, BackendChoice]:
    """Start the backend that can use the best device. All of `names` can run the version."""
    names = [n for n in names if is_offered(request.precision, request.model, n)] or names
    started: dict[BackendName, Backend] = {}
    errors: dict[BackendName, Exception] = {}

    def backend(name: BackendName) -> Backend | None:
        if name not in {*started, *errors}:
            try:
                started[name] = MODULES[name].start(request)
            except (BackendUnavailable, DeviceUnavailable) as error:
                errors[name] = error
        return started.get(name)

    for name in names:
        if request.device != "cpu" and MODULES[name].may_reach_gpu():
            found = backend(name)
            if found is not None and found.device.name != "cpu":
                return found, BackendChoice(name, f"it can use {found.device.name}")
    for name in names:
        found = backend(name)
        if found is not None:
            return found, BackendChoice(name, _why(name, request, errors))
    raise errors[names[0]]


def _why(name: BackendName, request: Request, errors: Mapping[BackendName, Exception]) -> str:
    """Return the reason why `auto` selects `name`, which runs on the CPU."""
    other = next(other for other in MODULES if other != name)
    if reason := _why_not(other, request.model):
        return f"{other} {reason}"
    if other in errors:
        return f"{other} failed: {errors[other]}"
    if not is_offered(request.precision, request.model, other):
        return f"{other} does not offer {request.precision} for this version"
    return f"{other} can use the same device, and {name} is preferred"


def _why_not(name: BackendName, model: Manifest) -> str | None:
    """Return the reason why a backend cannot run a version, or None if it can run the version."""
    module = MODULES[name]
    if not module.is_installed():
        return f"is not installed: {module.INSTALL}"
    return module.why_not(model)
