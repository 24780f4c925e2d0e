"""Logging: one line a record on standard output, JSON for machines or text for people.

What a record says beside its message is in `extra={"fields": {...}}`. Image bytes and secrets
never reach a record.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from typing import Any

import orjson

from service.settings import Settings

log = logging.getLogger("shoal")


def configure(settings: Settings) -> None:
    """Send every record of the process to standard output in the format asked for."""
    as_text = settings.log_format == "text" or (
        settings.log_format == "auto" and sys.stdout.isatty()
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    # Looked up for every record and told by none; so "Optimization" in Python's logging HOWTO.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)


class JsonFormatter(logging.Formatter):
    """`{"time": ..., "level": ..., "message": ..., <fields>}`, times in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _utc(int(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """`12:00:00 info     request  method=POST path=/predict ...`, local time."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "  ".join(f"{name}={_shown(value)}" for name, value in _fields(record).items())
        line = f"{clock} {record.levelname.lower():8} {record.getMessage()}"
        if fields:
            line += f"  {fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _shown(value: Any) -> str:
    """In one line whatever a client has sent, and nothing that moves a terminal's cursor."""
    text = str(value)
    return text if text.isprintable() else ascii(text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


@functools.lru_cache(maxsize=1)
def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
