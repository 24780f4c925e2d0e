"""Reloads the API keys and the model on SIGHUP."""

from __future__ import annotations

from service.errors import LoadFailed
from service.http.problems import problem_for
from service.inference.repository import NOT_NOW
from service.inference.service import Service
from service.telemetry.logs import log


async def reload(service: Service) -> None:
    """Read the key files again, and load the version of the model that a restart would load.

    If a file or the model cannot be loaded, the current keys or model stay in use, and an error is
    logged.
    """
    for keys in (service.keys, service.admin_keys):
        keys.reload()
    try:
        loaded = await service.repository.reload()
    except (LoadFailed, *NOT_NOW) as error:
        detail = problem_for(error).detail or str(error)
        log.error("the model was not reloaded: %s", detail)
    else:
        fields = {"model": loaded.name, "version": loaded.version}
        log.info("reloaded", extra={"fields": fields})
