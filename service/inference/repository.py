"""The model repository: the versions of the model in the store, and which of them serves.

One model is served, the one that the settings name. To serve another model, start another server:
clients of the first one would find it gone (docs/decisions/0014-replacing-the-model.md).
"""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable

from batching import Draining
from model_store import versions
from model_store.architectures import UnknownArchitecture
from model_store.manifest import BadModel, Identity
from model_store.params import BadParams
from service.errors import ChangeUnderWay, LoadFailed, NotReady, UnknownModel
from service.inference.model_host import ModelHost
from service.settings import Settings
from service.telemetry.logs import log

NOT_NOW = (ChangeUnderWay, Draining, NotReady)
EXPECTED = (BadModel, BadParams, OSError, UnknownArchitecture)
"""Expected errors of a version. Their messages are for people."""


class Repository:
    """Loads and unloads versions of one model."""

    def __init__(self, settings: Settings, host: ModelHost, count: Callable[[str], None]) -> None:
        """
        Args:
            settings: Name the model and its store.
            host: Serves the model.
            count: Called with the result of each load: `loaded` or `failed`.
        """
        self._settings = settings
        self._host = host
        self._count = count
        self._loading: str | None = None
        self._failed: dict[str, str] = {}

    async def load(self, name: str, version: str | None = None) -> Identity:
        """Load a version and let it replace the one that serves, between two batches.

        Args:
            name: Must be the name of the model that is served.
            version: None: the version that a start would load.

        Returns:
            The version that serves now.

        Raises:
            UnknownModel: Another model is served.
            LoadFailed: The version cannot be loaded. The previous one still serves.
            ChangeUnderWay, NotReady, Draining: The server cannot change the version now.
        """
        self._check(name)
        requested = version or "the version that a start would load"
        try:
            path = await asyncio.to_thread(folder, self._settings, version)
            requested = path.name
            model = await self._host.replace(path)
        except NOT_NOW:
            raise
        except Exception as error:
            raise self._failure(requested, error) from error
        self._count("loaded")
        self._failed.pop(model.version, None)
        return _identity(model)

    async def unload(self, name: str) -> Identity:
        """Answer the accepted requests, then unload the model until the next `load`.

        Returns the version that was unloaded. Raises UnknownModel, ChangeUnderWay, NotReady,
        Draining.
        """
        self._check(name)
        return _identity(await self._host.unload())

    async def reload(self) -> Identity:
        """Load the version that a start would load, unless it serves already. Raises as `load`."""
        started = self._host.loaded
        if started is not None:
            chosen = await asyncio.to_thread(folder, self._settings)
            if chosen.name == started.model.version:
                return _identity(started.model)
        return await self.load(self._settings.model)

    async def index(self) -> list[dict[str, str]]:
        """Every version of the model in the store, and the one that serves: `name`, `version`,
        `state` (READY, LOADING, UNAVAILABLE), and `reason`, which says why it is not READY."""
        found = await asyncio.to_thread(versions.all_versions, self._settings.model_store)
        started = self._host.loaded
        numbers = {version for name, version in found if name == self._settings.model}
        numbers |= {started.model.version} if started else set()
        return [
            {"name": self._settings.model, "version": version} | self._state(version)
            for version in sorted(numbers, key=int)
        ]

    def _state(self, version: str) -> dict[str, str]:
        started = self._host.loaded
        if started is not None and started.model.version == version:
            return {"state": "READY", "reason": ""}
        if self._host.loading == version:
            return {"state": "LOADING", "reason": "being loaded"}
        return {"state": "UNAVAILABLE", "reason": self._failed.get(version, "not loaded")}

    def _check(self, name: str) -> None:
        if name != self._settings.model:
            raise UnknownModel(
                f"This server serves the model {self._settings.model!r} and no other. Load another "
                "version of it, or start a server with another SHOAL_MODEL."
            )

    def _failure(self, version: str, error: Exception) -> LoadFailed:
        self._count("failed")
        why = str(error)
        if not isinstance(error, EXPECTED):
            log.error("loading failed unexpectedly", exc_info=error)
            why = f"{type(error).__name__}: {why.strip().partition(chr(10))[0]}"
        self._failed[version] = why
        log.warning("not loaded", extra={"fields": {"version": version, "reason": why}})
        started = self._host.loaded
        state = (
            f"Version {started.model.version} still serves" if started else "No version is served"
        )
        return LoadFailed(f"{self._settings.model} {version} was not loaded: {why}. {state}.")


def folder(settings: Settings, version: str | None = None) -> pathlib.Path:
    """The folder of a version. None: the version that the settings name, or the highest one.

    Raises BadModel, with a list of the versions that exist.
    """
    store, model = settings.model_store, settings.model
    number = version or settings.model_version or versions.latest(store, model)
    found = versions.folder(store, model, number)
    versions.find(store, model, number)
    return found


def _identity(model: Identity) -> Identity:
    return Identity(name=model.name, version=model.version)
