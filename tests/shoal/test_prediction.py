"""Answers read into plain data, whoever gave them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from shoal.errors import NotShoal, Unavailable
from shoal.prediction import prediction, predictions

REQUEST = httpx.Request("POST", "http://shoal/predict")
HORSE = {
    "class": "horse",
    "probability": 0.9,
    "probabilities": {"horse": 0.9, "dog": 0.1},
    "model": {"name": "pets", "version": "2"},
}
BUSY = {"status": 503, "code": "queue_full", "title": "T", "detail": "D", "retry_after": 2}
HEADERS = {"Server-Timing": "read;dur=0.100, infer;dur=2.5", "X-Request-ID": "42"}


def answer(body: Any, **headers: str) -> httpx.Response:
    return httpx.Response(200, json=body, headers=headers, request=REQUEST)


def test_all_that_an_answer_tells() -> None:
    """Body and headers; times are in seconds."""
    read = prediction(httpx.Response(200, json=HORSE, headers=HEADERS, request=REQUEST))
    assert (read.class_, read.probability, read.model, read.version) == ("horse", 0.9, "pets", "2")
    assert read.probabilities == {"horse": 0.9, "dog": 0.1}
    assert read.timing == pytest.approx({"read": 0.0001, "infer": 0.0025})
    assert read.request_id == "42"


def test_one_of_several_fails_alone() -> None:
    """Why, in its place, and when to try again."""
    first, second = predictions(answer({"predictions": [BUSY, HORSE]}))
    assert isinstance(first, Unavailable) and first.retry_after == 2
    assert not isinstance(second, Exception) and second.class_ == "horse"


@pytest.mark.parametrize(
    "body", [[], "horse", {}, {"class": "horse"}, HORSE | {"model": "pets"}], ids=str
)
def test_somebody_else_answers(body: Any) -> None:
    """JSON that is no prediction: the URL is another service's."""
    with pytest.raises(NotShoal, match="http://shoal/predict answers 200"):
        prediction(answer(body))


@pytest.mark.parametrize(
    "body",
    [{}, {"predictions": 1}, {"predictions": [{"code": "x"}]}, {"predictions": [1]}],
    ids=str,
)
def test_somebody_else_answers_several(body: Any) -> None:
    with pytest.raises(NotShoal):
        predictions(answer(body))


def test_the_sentence_of_the_tutorials_server() -> None:
    """Is no JSON."""
    with pytest.raises(NotShoal):
        prediction(httpx.Response(200, text="The input picture is ...", request=REQUEST))
