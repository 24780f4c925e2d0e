"""Restarts of a process: immediately, then after growing pauses, and not forever."""

from __future__ import annotations

from service.workers.process import MAX_PAUSE, MAX_RESTARTS, STEADY_SECONDS, RestartPolicy


def test_restart_policy_waits_longer_each_time() -> None:
    """The first restart is immediate, and there is a maximum number of restarts in a row."""
    policy, now, pauses = RestartPolicy(), 0.0, []
    while True:
        policy.started(now)
        now += 1
        pause = policy.ended(now)
        if pause is None:
            break
        pauses.append(pause)
        now += pause
    assert len(pauses) == MAX_RESTARTS
    assert pauses[:4] == [0.0, 0.5, 1.0, 2.0]
    assert pauses == sorted(pauses) and max(pauses) <= MAX_PAUSE


def test_restart_policy_forgets_restarts_of_a_steady_process() -> None:
    """A process that lives for `STEADY_SECONDS` is restarted immediately each time."""
    policy, now = RestartPolicy(), 0.0
    for _ in range(3 * MAX_RESTARTS):
        policy.started(now)
        now += STEADY_SECONDS
        assert policy.ended(now) == 0.0


def test_restart_policy_counts_restarts_of_an_unsteady_process() -> None:
    """A process that lives one second less waits before its second restart."""
    policy = RestartPolicy()
    policy.started(0.0)
    assert policy.ended(1.0) == 0.0
    policy.started(1.0)
    assert policy.ended(STEADY_SECONDS) == 0.5
