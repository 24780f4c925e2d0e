"""Restarts: at once, then with growing pauses, and not for ever."""

from __future__ import annotations

from service.workers.restarts import LONGEST_PAUSE, MOST, STEADY, Restarts


def test_pauses_grow() -> None:
    """The first is none, and the last is followed by giving up."""
    restarts, now, pauses = Restarts(), 0.0, []
    while True:
        restarts.started(now)
        now += 1
        pause = restarts.died(now)
        if pause is None:
            break
        pauses.append(pause)
        now += pause
    assert len(pauses) == MOST
    assert pauses[:4] == [0.0, 0.5, 1.0, 2.0]
    assert pauses == sorted(pauses) and max(pauses) <= LONGEST_PAUSE


def test_a_steady_life_clears_the_sheet() -> None:
    """Whoever dies once a day is started at once each time."""
    restarts, now = Restarts(), 0.0
    for _ in range(3 * MOST):
        restarts.started(now)
        now += STEADY
        assert restarts.died(now) == 0.0


def test_a_short_life_does_not() -> None:
    """A second before steady it still counts."""
    restarts = Restarts()
    restarts.started(0.0)
    assert restarts.died(1.0) == 0.0
    restarts.started(1.0)
    assert restarts.died(STEADY) == 0.5
