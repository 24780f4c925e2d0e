"""What came of an image file, as `shoal predict` tells it: for people, and for programs. Pure."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from shoal.errors import NoPrediction, Problem, TimedOut
from shoal.prediction import Prediction

Outcome: TypeAlias = Prediction | NoPrediction | OSError
"""OSError: the file could not be read."""


def heading(width: int) -> str:
    """Of a table whose files' names are so many characters wide."""
    return f"{'FILE':{width}}  {'CLASS':14} PROBABILITY      MS"


def row(name: str, prediction: Prediction, width: int) -> str:
    """`MS`: of all stages together."""
    milliseconds = 1e3 * sum(prediction.timing.values())
    return (
        f"{_shown(name):{width}}  {_shown(prediction.class_):14} "
        f"{prediction.probability:11.1%} {milliseconds:7.1f}"
    )


def in_words(name: str, error: NoPrediction | OSError) -> str:
    return _shown(f"{name}: {_detail(error)}")


def in_json(name: str, outcome: Outcome) -> str:
    """One line."""
    told: dict[str, Any] = {"file": name}
    if isinstance(outcome, Prediction):
        told |= {
            "class": outcome.class_,
            "probability": outcome.probability,
            "probabilities": outcome.probabilities,
            "model": {"name": outcome.model, "version": outcome.version},
            "timing": outcome.timing,
            "request_id": outcome.request_id,
        }
    else:
        told["error"] = {"code": _code(outcome), "detail": _detail(outcome)}
        if isinstance(outcome, Problem):
            told["error"] |= {"status": outcome.status, "request_id": outcome.request_id}
    return json.dumps(told)


def _code(error: NoPrediction | OSError) -> str:
    if isinstance(error, Problem):
        return error.code
    return "timed_out" if isinstance(error, TimedOut) else "unreadable_file"


def _detail(error: NoPrediction | OSError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return error.detail if isinstance(error, Problem) else str(error)


def _shown(text: str) -> str:
    """In one line, and nothing that moves a terminal's cursor: files have any name."""
    return text if text.isprintable() else ascii(text)[1:-1]
