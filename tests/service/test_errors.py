"""Tests exceptions of the service, and what importing them costs a decoder process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from service.errors import RateLimited, first_error
from tests.sources import ROOT


class Point(BaseModel):
    x: int
    y: list[int] = []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "x: Field required."),
        (
            {"x": "a"},
            "x: Input should be a valid integer, unable to parse string as an integer.",
        ),
        (
            {"x": "secret", "y": "b"},
            "x: Input should be a valid integer, unable to parse string as an integer.",
        ),
        (
            {"x": 1, "y": [1, 2, None]},
            "y.2: Input should be a valid integer.",
        ),
        (5, "The body: Input should be a valid dictionary or instance of Point."),
    ],
    ids=["missing", "wrong", "two errors", "inside a list", "the whole body"],
)
def test_first_error_is_one_sentence(value: object, message: str) -> None:
    """The message says where the first error is and what is wrong. It does not repeat the value."""
    with pytest.raises(ValidationError) as caught:
        Point.model_validate(value)
    assert first_error(caught.value) == message


def test_rate_limited_has_the_seconds_to_wait() -> None:
    """The exception has the exact seconds, and its message has them rounded."""
    error = RateLimited(1.23456)
    assert (error.retry_after, str(error)) == (1.23456, "retry in 1.23 s")


def test_errors_import_only_the_standard_library() -> None:
    """Decoder processes import the exceptions, so these load no other package."""
    code = (
        "import sys; before = {*sys.modules}; import service.errors; "
        "names = {name.partition('.')[0] for name in {*sys.modules} - before}; "
        "print(names - sys.stdlib_module_names)"
    )
    found = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert found == "{'service'}\n"
