"""The model repository: what the store holds of the model that is served, and which version serves.

Names and versions go in, plain data comes out. One name is served, the one that the settings name:
whoever wants another starts another server, since clients of the first would find it gone
(docs/decisions/0014-replacing-the-model.md).
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
FORESEEN = (BadModel, BadParams, OSError, UnknownArchitecture)
"""What may be wrong with a version, told in words for people."""


class Repository:
    def __init__(self, settings: Settings, local: ModelHost, count: Callable[[str], None]) -> None:
        """`count` is told how each load ended: loaded, or failed."""
        self._settings = settings
        self._local = local
        self._count = count
        self._loading: str | None = None
        self._failed: dict[str, str] = {}

    async def load(self, name: str, version: str | None = None) -> Identity:
        """Let a version of the model serve, from one batch to the next; which one then does. None:
        the one that a start would take.

        Raises UnknownModel, LoadFailed (what served before goes on to), ChangeUnderWay, NotReady
        during the start, Draining.
        """
        self._check(name)
        wanted = version or "the version that a start would take"
        try:
            where = await asyncio.to_thread(folder, self._settings, version)
            wanted = where.name
            model = await self._local.replace(where)
        except NOT_NOW:
            raise
        except Exception as error:
            raise self._failure(wanted, error) from error
        self._count("loaded")
        self._failed.pop(model.version, None)
        return _identity(model)

    async def unload(self, name: str) -> Identity:
        """Answer who was accepted, then serve nothing until the next `load`; what was unloaded.

        Raises UnknownModel, ChangeUnderWay, NotReady, Draining.
        """
        self._check(name)
        return _identity(await self._local.unload())

    async def reload(self) -> Identity:
        """Let the version serve that a start would take; nothing happens where it does already.

        Raises as `load`.
        """
        started = self._local.loaded
        if started is not None:
            chosen = await asyncio.to_thread(folder, self._settings)
            if chosen.name == started.model.version:
                return _identity(started.model)
        return await self.load(self._settings.model)

    async def index(self) -> list[dict[str, str]]:
        """Of every version of the model in the store, and of the one that serves: `name`,
        `version`, `state` (READY, LOADING, UNAVAILABLE), and `reason`, why it is not READY."""
        there = await asyncio.to_thread(versions.all_versions, self._settings.model_store)
        started = self._local.loaded
        numbers = {version for name, version in there if name == self._settings.model}
        numbers |= {started.model.version} if started else set()
        return [
            {"name": self._settings.model, "version": version} | self._state(version)
            for version in sorted(numbers, key=int)
        ]

    def _state(self, version: str) -> dict[str, str]:
        started = self._local.loaded
        if started is not None and started.model.version == version:
            return {"state": "READY", "reason": ""}
        if self._local.loading == version:
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
        if not isinstance(error, FORESEEN):
            log.error("loading failed unexpectedly", exc_info=error)
            why = f"{type(error).__name__}: {why.strip().partition(chr(10))[0]}"
        self._failed[version] = why
        log.warning("not loaded", extra={"fields": {"version": version, "reason": why}})
        started = self._local.loaded
        goes_on = (
            f"Version {started.model.version} goes on serving" if started else "None is served"
        )
        return LoadFailed(f"{self._settings.model} {version} was not loaded: {why}. {goes_on}.")


def folder(settings: Settings, version: str | None = None) -> pathlib.Path:
    """Where the version of the model lies. None: the one that the settings name, or the highest.

    Raises BadModel, listing what there is.
    """
    store, model = settings.model_store, settings.model
    number = version or settings.model_version or versions.latest(store, model)
    found = versions.folder(store, model, number)
    versions.find(store, model, number)
    return found


def _identity(model: Identity) -> Identity:
    return Identity(name=model.name, version=model.version)
