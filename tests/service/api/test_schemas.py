"""The described responses have the fields of the real ones."""

from __future__ import annotations

import httpx
import pytest
from pydantic import BaseModel

from service.api.schemas import ImageProblem, Live, Prediction, Predictions, Ready
from tests.service.conftest import png


def fields(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.parametrize(("path", "model"), [("/healthz", Live), ("/readyz", Ready)])
async def test_probes_have_the_described_fields(
    client: httpx.AsyncClient, path: str, model: type[BaseModel]
) -> None:
    """The answer has exactly the fields of its schema, with values of their types."""
    body = (await client.get(path)).json()
    assert set(body) == fields(model)
    model.model_validate(body)


async def test_predictions_have_the_described_fields(client: httpx.AsyncClient) -> None:
    """A prediction, and the error of one image, have exactly the fields of their schemas."""
    one = (await client.post("/predict", files={"img": png(7)})).json()
    assert set(one) == fields(Prediction)
    files = [("img", png(7)), ("img", b"no image")]
    several = (await client.post("/predict/batch", files=files)).json()
    Predictions.model_validate(several)
    good, bad = several["predictions"]
    assert set(good) == fields(Prediction)
    assert set(bad) == fields(ImageProblem) - {"retry_after"}  # a retry would not help
