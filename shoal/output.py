"""Formats the results of `shoal predict`: a table for people, JSON lines for programs."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from shoal.errors import NoPrediction, Problem, TimedOut
from shoal.prediction import Prediction

Result: TypeAlias = Prediction | NoPrediction | OSError
"""The prediction for a file, or an error. OSError: the file could not be read."""


def header(width: int) -> str:
    """Returns the header of the table. `width`: length of the longest file name."""
    return f"{'FILE':{width}}  {'CLASS':14} PROBABILITY      MS"


def row(name: str, prediction: Prediction, width: int) -> str:
    """Returns a row of the table. The column MS is the sum of the times of all stages."""
    milliseconds = 1e3 * sum(prediction.timing.values())
    return (
        f"{_printable(name):{width}}  {_printable(prediction.class_):14} "
        f"{prediction.probability:11.1%} {milliseconds:7.1f}"
    )


def error_line(name: str, error: NoPrediction | OSError) -> str:
    """Returns the error line for a file without a prediction."""
    return _printable(f"{name}: {_detail(error)}")


def json_line(name: str, result: Result) -> str:
    """Returns a result as a JSON object on one line."""
    fields: dict[str, Any] = {"file": name}
    if isinstance(result, Prediction):
        fields |= {
            "class": result.class_,
            "probability": result.probability,
            "probabilities": result.probabilities,
            "model": {"name": result.model, "version": result.version},
            "timing": result.timing,
            "request_id": result.request_id,
        }
    else:
        fields["error"] = {"code": _code(result), "detail": _detail(result)}
        if isinstance(result, Problem):
            fields["error"] |= {"status": result.status, "request_id": result.request_id}
    return json.dumps(fields)


def _code(error: NoPrediction | OSError) -> str:
    if isinstance(error, Problem):
        return error.code
    return "timed_out" if isinstance(error, TimedOut) else "unreadable_file"


def _detail(error: NoPrediction | OSError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return error.detail if isinstance(error, Problem) else str(error)


def _printable(text: str) -> str:
    """Escapes line breaks and terminal control characters, which file names may contain."""
    return text if text.isprintable() else ascii(text)[1:-1]
