"""What a request needed is freed with it. Collections of garbage come rarely, and whatever kept
itself until the next one would keep an upload, too."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.e2e.process import Server
from tests.faults.faulty import FAULTY, Fault, picture
from tests.service import synthetic

pytestmark = pytest.mark.slow
TIMES = 20
LEAST = 10
"""Objects of the smallest circle seen: a form's parser and the methods that it calls."""
GOOD = picture(Fault.NONE)
LARGE = synthetic.encode(synthetic.flat("RGB", 7, side=2000), "PNG")
"""Decoded on a thread of its own."""
SLOW = {"ENGINE_SECONDS": "0.03"}
"""Long enough for somebody to watch whether the client leaves."""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"content": GOOD}, 200),
        ({"content": LARGE}, 200),
        ({"content": LARGE[:-100]}, 400),
        ({"content": synthetic.bombs()["png text"]}, 400),
        ({"files": {"x": GOOD, "img": GOOD}}, 200),
        ({"files": {"x": GOOD}}, 422),
    ],
    ids=["good", "large", "broken", "bomb", "form", "no image"],
)
def test_requests_leave_no_reference_cycles(sent: dict[str, Any], status: int) -> None:
    """Everything that a request allocates is freed without a garbage collection."""
    headers = {"Content-Type": "image/png"} if "content" in sent else {}
    with Server(*FAULTY, **SLOW) as server:
        server.wait_until_ready()
        for _ in range(TIMES):
            answer = httpx.post(f"{server.url}/predict", headers=headers, timeout=30, **sent)
            assert answer.status_code == status
        server.stop()
        assert server.log_of("the loop")["kept_each_other"] < TIMES * LEAST
