"""What SIGHUP reloads: the keys, and the model."""

from __future__ import annotations

from fastapi import FastAPI

from service.keys import Keys
from service.logs import log


async def reload(app: FastAPI) -> None:
    """Whatever cannot be reloaded stays as it was, and the log says why."""
    log.info("reloading")
    keys: Keys = app.state.keys
    keys.reload()
