"""Conversion of responses to predictions and errors."""

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


def test_prediction_has_the_fields_of_body_and_headers() -> None:
    """Fields come from the body and the headers; times are converted to seconds."""
    read = prediction(httpx.Response(200, json=HORSE, headers=HEADERS, request=REQUEST))
    assert (read.class_, read.probability, read.model, read.version) == ("horse", 0.9, "pets", "2")
    assert read.probabilities == {"horse": 0.9, "dog": 0.1}
    assert read.timing == pytest.approx({"read": 0.0001, "infer": 0.0025})
    assert read.request_id == "42"


def test_predictions_have_errors_at_the_position_of_their_image() -> None:
    """An image that failed has its error, with Retry-After, at its position."""
    first, second = predictions(answer({"predictions": [BUSY, HORSE]}))
    assert isinstance(first, Unavailable) and first.retry_after == 2
    assert not isinstance(second, Exception) and second.class_ == "horse"


@pytest.mark.parametrize(
    "body", [[], "horse", {}, {"class": "horse"}, HORSE | {"model": "pets"}], ids=str
)
def test_prediction_raises_not_shoal_for_other_json(body: Any) -> None:
    """JSON that is not a prediction raises NotShoal."""
    with pytest.raises(NotShoal, match="http://shoal/predict responded with 200"):
        prediction(answer(body))


@pytest.mark.parametrize(
    "body",
    [{}, {"predictions": 1}, {"predictions": [{"code": "x"}]}, {"predictions": [1]}],
    ids=str,
)
def test_predictions_raises_not_shoal_for_other_json(body: Any) -> None:
    """JSON that is not a list of predictions raises NotShoal."""
    with pytest.raises(NotShoal):
        predictions(answer(body))


def test_prediction_raises_not_shoal_for_text() -> None:
    """A sentence, as the tutorial's server sends it, raises NotShoal."""
    with pytest.raises(NotShoal):
        prediction(httpx.Response(200, text="The input picture is ...", request=REQUEST))
