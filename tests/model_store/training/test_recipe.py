"""What a recipe decides by the number of a step, and which values it rejects."""

from __future__ import annotations

import dataclasses

import pytest

from model_store.training.recipe import Recipe
from tests.sources import ROOT


@pytest.mark.parametrize(("step", "side"), [(0, 24), (49, 24), (50, 32), (99, 32)])
def test_side(step: int, side: int) -> None:
    """Small crops first, whole images last."""
    assert Recipe(small=0.5).side_at(step, 100) == side
    assert Recipe().side_at(step, 100) == 32


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.02), (4, 0.1), (9, 0.2), (10, 0.2), (55, 0.1), (99, 0.0001)]
)
def test_learning_rate(step: int, rate: float) -> None:
    """One cycle: linear up to the peak, cosine down to almost nothing."""
    recipe = Recipe(learning_rate=0.2, warm_up=0.1)
    assert recipe.learning_rate_at(step, 100) == pytest.approx(rate, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher_weight": 1.5}, "--teacher-weight 1.5"),
        ({"temperature": 0.0}, "--temperature 0.0"),
        ({"zoom": 0.6}, "--zoom 0.6"),
        ({"zoom": -0.1}, "--zoom -0.1"),
        ({"mixup": -0.1}, "--mixup -0.1"),
        ({"held_out": -1}, "--held-out -1"),
        ({"views": -1}, "--views -1"),
    ],
)
def test_values_out_of_range(values: dict[str, float], message: str) -> None:
    """A value that makes no sense is rejected with the name of its option."""
    with pytest.raises(ValueError, match=message):
        Recipe(**values)  # type: ignore[arg-type]


def test_teachers() -> None:
    """Teachers are separated by commas."""
    assert Recipe(teacher="a/1,b/2").teachers == ("a/1", "b/2")
    assert Recipe().teachers == ()


def test_every_option_is_documented() -> None:
    """docs/training.md explains every option that decides the weights."""
    page = (ROOT / "docs" / "training.md").read_text()
    options = [f"`--{field.name.replace('_', '-')}`" for field in dataclasses.fields(Recipe)]
    assert [option for option in options if option not in page] == []
