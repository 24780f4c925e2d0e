"""Output of `shoal predict`: the table and JSON lines."""

from __future__ import annotations

import json

import pytest

from shoal.errors import NoPrediction, TimedOut, Unavailable
from shoal.output import error_line, header, json_line, row
from shoal.prediction import Prediction

HORSE = Prediction(
    class_="horse",
    probability=0.9994,
    probabilities={"horse": 0.9994, "dog": 0.0006},
    model="pets",
    version="2",
    timing={"read": 0.001, "infer": 0.0025},
    request_id="42",
)
BUSY = Unavailable(503, "queue_full", "Title", "The queue is full.", "42", 1)


def test_output_table_aligns_columns() -> None:
    """Columns line up with their headers for file names of different lengths."""
    lines = [header(9), row("horse.jpg", HORSE, 9), row("a.png", HORSE, 9)]
    assert lines == [
        "FILE       CLASS          PROBABILITY      MS",
        "horse.jpg  horse                99.9%     3.5",
        "a.png      horse                99.9%     3.5",
    ]


def test_output_json_has_all_fields_of_a_prediction() -> None:
    """A prediction becomes an object with every field."""
    assert json.loads(json_line("a.png", HORSE)) == {
        "file": "a.png",
        "class": "horse",
        "probability": 0.9994,
        "probabilities": {"horse": 0.9994, "dog": 0.0006},
        "model": {"name": "pets", "version": "2"},
        "timing": {"read": 0.001, "infer": 0.0025},
        "request_id": "42",
    }


@pytest.mark.parametrize(
    ("error", "words", "object_"),
    [
        (
            BUSY,
            "The queue is full.",
            {"code": "queue_full", "status": 503, "request_id": "42"},
        ),
        (TimedOut("No answer"), "No answer", {"code": "timed_out"}),
        (FileNotFoundError(2, "No such file"), "No such file", {"code": "unreadable_file"}),
    ],
)
def test_output_states_why_there_is_no_prediction(
    error: NoPrediction | OSError, words: str, object_: dict[str, object]
) -> None:
    """An error has a code and a detail in JSON, and the same detail in text."""
    assert error_line("a.png", error) == f"a.png: {words}"
    fields = json.loads(json_line("a.png", error))
    assert fields == {"file": "a.png", "error": object_ | {"detail": words}}


def test_output_escapes_control_characters() -> None:
    """Control characters in names of files do not reach the terminal."""
    assert row("\x1b[2J.png", HORSE, 5).startswith(r"\x1b[2J.png")
    assert "\n" not in error_line("a\nb.png", TimedOut("late")) + json_line("a\nb", HORSE)
