"""What came of a file, for people and for programs."""

from __future__ import annotations

import json

import pytest

from shoal.errors import NoPrediction, TimedOut, Unavailable
from shoal.outcomes import heading, in_json, in_words, row
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


def test_a_table() -> None:
    """Columns under their headings, whatever the names."""
    lines = [heading(9), row("horse.jpg", HORSE, 9), row("a.png", HORSE, 9)]
    assert lines == [
        "FILE       CLASS          PROBABILITY      MS",
        "horse.jpg  horse                99.9%     3.5",
        "a.png      horse                99.9%     3.5",
    ]


def test_a_prediction_for_programs() -> None:
    assert json.loads(in_json("a.png", HORSE)) == {
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
def test_why_there_is_none(
    error: NoPrediction | OSError, words: str, object_: dict[str, object]
) -> None:
    """In its place, under a code for programs and in words for people."""
    assert in_words("a.png", error) == f"a.png: {words}"
    told = json.loads(in_json("a.png", error))
    assert told == {"file": "a.png", "error": object_ | {"detail": words}}


def test_a_terminal_is_left_alone() -> None:
    """Files may have any name, and models classes of any."""
    assert row("\x1b[2J.png", HORSE, 5).startswith(r"\x1b[2J.png")
    assert "\n" not in in_words("a\nb.png", TimedOut("late")) + in_json("a\nb", HORSE)
