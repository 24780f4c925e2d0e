"""Rates: how often a client may ask, told the time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from service.errors import RateLimited
from service.rate_limit import RateLimiter, network
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.conftest import connected, png
from tests.service.v2.test_routes import INFER, body, in_binary

HORSE = png(7)
ONE, TWO = "one-key-of-many-letters", "another-key-of-many-letters"


def wait(rates: RateLimiter, now: float, client: str = "a") -> float | None:
    """Seconds that a request at `now` is told to wait; None if it is welcome."""
    try:
        rates.take(client, now)
    except RateLimited as refused:
        return refused.retry_after
    return None


@pytest.mark.parametrize(
    ("rate", "burst", "asked"),
    [
        (1, 1, [(0, None), (0, 1), (0.75, 0.25), (1, None), (1, 1), (5, None), (5, 1)]),
        (2, 1, [(0, None), (0.25, 0.25), (0.5, None), (1, None), (1.25, 0.25)]),
        (2, 3, [(0, None), (0, None), (0, None), (0, 0.5), (0.5, None), (0.5, 0.5)]),
        (2, 3, [(0, None), (9, None), (9, None), (9, None), (9, 0.5), (9.5, None), (9.5, 0.5)]),
        (0.5, 2, [(0, None), (0, None), (0, 2), (1, 1), (2, None), (2, 2)]),
    ],
)
def test_take_allows_a_burst_and_then_the_rate(
    rate: float, burst: int, asked: list[tuple[float, float | None]]
) -> None:
    """A rejected client is told how long to wait, and rejections cost nothing."""
    rates = RateLimiter(rate, burst)
    assert [(now, wait(rates, now)) for now, _ in asked] == asked


def test_take_counts_clients_separately() -> None:
    """Images of one client do not count for another."""
    rates = RateLimiter(1, 1)
    assert [wait(rates, 0, client) for client in "abab"] == [None, None, 1, 1]


@given(
    st.sampled_from([0.5, 1, 8]),
    st.integers(1, 5),
    st.lists(
        st.tuples(st.sampled_from([0, 0.125, 0.5, 1, 4]), st.sampled_from([1, 1, 1, 2, 64])),
        max_size=60,
    ),
)
def test_take_limits_the_images_of_any_period(
    rate: float, burst: int, requests: list[tuple[float, int]]
) -> None:
    """A request is accepted only below burst + rate x time, and always after the wait that was
    told."""
    rates, now, taken = RateLimiter(rate, burst), 0.0, list[tuple[float, int]]()
    for pause, images in requests:
        now += pause
        told = wait(rates, now)
        if told is not None:
            assert wait(rates, now + told) is None
            now += told
        taken.append((now, images))
        rates.owe("a", images - 1, now)
    for first in range(len(taken)):
        sent = 0
        for at, images in taken[first:]:
            assert sent + 1 <= burst + rate * (at - taken[first][0]) + 1e-6
            sent += images


def test_owe_rejects_until_the_debt_is_paid_off() -> None:
    """Further images of a request count beyond the burst, and the client waits for them."""
    rates = RateLimiter(2, 4)
    assert wait(rates, 0) is None
    rates.owe("a", 63, 0)
    assert wait(rates, 0) == wait(rates, 10) + 10 == 30.5  # type: ignore[operator]
    assert wait(rates, 0, "b") is None
    assert wait(rates, 30.5) is None
    rates.owe("a", 0, 30.5)
    assert wait(rates, 30.5) == 0.5


def test_debts_do_not_keep_other_clients_in_memory() -> None:
    """A client in debt is remembered, and later clients with a full bucket are forgotten."""
    rates = RateLimiter(1, 1)
    rates.take("a", 0)
    rates.owe("a", 1_000_000, 0)
    for number in range(10_000):
        rates.take(number, number)
    assert len(rates) < 10
    assert wait(rates, 10_000, "a") == 1_000_001 - 10_000


def test_full_buckets_are_forgotten() -> None:
    """Clients whose buckets are full are forgotten as new ones come."""
    rates = RateLimiter(1, 1)
    for number in range(1000):
        rates.take(number, 0)
    assert len(rates) == 1000
    for number in range(1000):
        rates.take(number, 2)
    assert len(rates) == 1000
    rates.take("a", 10)
    assert len(rates) == 999
    for number in range(999):
        rates.take(number, 10)
    rates.take("a", 20)
    assert len(rates) < 1000


def test_busy_client_does_not_keep_others_in_memory() -> None:
    """Memory is needed for the clients of the moment, not for all of a day."""
    rates = RateLimiter(10, 2)
    for number in range(10_000):
        rates.take("always", number / 10)
        rates.take(number, number / 10)
    assert len(rates) < 10


def test_number_of_remembered_clients_is_limited() -> None:
    """At the maximum, the client whose last request is the oldest is forgotten."""
    rates = RateLimiter(1, 1, max_clients=3)
    for client in "abcd":
        rates.take(client, 0)
    assert len(rates) == 3
    assert [wait(rates, 0, client) for client in "bcda"] == [1, 1, 1, None]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("2001:db8:1:3::9", "2001:db8:1:3::"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::"),
        ("not:an:address", "not:an:address"),
    ],
)
def test_network_identifies_clients(address: str, expected: str) -> None:
    """All addresses of an IPv6 network are one client."""
    assert network(address) == expected


@pytest.fixture
async def limited() -> AsyncIterator[httpx.AsyncClient]:
    async with connected(Settings(rate_limit=0.01, rate_burst=2), FakeEngine()) as client:
        yield client


async def test_too_many_images_get_429(limited: httpx.AsyncClient) -> None:
    """The answer is 429 with Retry-After, before the upload is read."""

    async def untouched() -> AsyncIterator[bytes]:
        yield b""
        raise AssertionError("the upload was read")

    for _ in range(2):
        assert (await limited.post("/predict", files={"img": HORSE})).status_code == 200
    refused = await limited.post(
        "/predict", content=untouched(), headers={"content-type": "image/png"}
    )
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert refused.headers["retry-after"] == "60"


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/v2/models/fake/infer"])
async def test_all_endpoints_for_images_are_limited(limited: httpx.AsyncClient, path: str) -> None:
    """All endpoints that accept images are limited; probes, metrics and pages are not."""
    for _ in range(2):
        assert (await limited.post("/predict", files={"img": HORSE})).status_code == 200
    assert (await limited.post(path, files={"img": HORSE})).status_code == 429
    for free in "/healthz", "/readyz", "/metrics", "/docs", "/", "/v2":
        assert (await limited.get(free)).status_code == 200


async def accepted(client: httpx.AsyncClient) -> int:
    """Requests that the rate limit lets pass, before one that it does not."""
    count = 0
    while (await client.post("/predict", files={"img": HORSE})).status_code == 200:
        count += 1
    return count


IMAGES = {"small": HORSE, "large": png(7, side=200), "broken": b"hello", "empty": b""}


@pytest.mark.parametrize("count", [1, 3, 5, 8])
@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
async def test_all_images_count(count: int, image: bytes) -> None:
    """Images of batches and inference requests count, whether they can be decoded or not."""
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [count, 32, 32, 3]}
    for path, sent in (
        ("/predict/batch", {"files": [("img", image)] * count}),
        (INFER, {"json": body(*[image] * count)}),
        (INFER, in_binary(*[image] * count)),
        (INFER, {"json": {"inputs": [pixels | {"data": [0] * (count * 3072)}]}}),
    ):
        settings = Settings(rate_limit=0.001, rate_burst=5)
        async with connected(settings, FakeEngine()) as client:
            await client.post(path, **sent)
            assert await accepted(client) == max(0, 5 - count)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/predict/batch", {"files": [("img", HORSE)] * 65}),
        ("/predict/batch", {"content": b"not a form"}),
        ("/v2/models/fake/infer", {"json": {"inputs": []}}),
        ("/v2/models/other/infer", {"json": {}}),
    ],
)
async def test_requests_without_known_images_count_as_one(path: str, sent: dict[str, Any]) -> None:
    """A request that is rejected before an image is found counts as one image."""
    settings = Settings(rate_limit=0.001, rate_burst=5)
    async with connected(settings, FakeEngine()) as client:
        assert 400 <= (await client.post(path, **sent)).status_code < 429
        assert await accepted(client) == 4


async def test_keys_identify_clients() -> None:
    """A key is one client at all addresses, and a request without a key gets 401 and costs
    nothing."""
    settings = Settings(api_keys=SecretStr(f"{ONE},{TWO}"), rate_limit=0.01, rate_burst=1)
    async with connected(settings, FakeEngine()) as client:

        async def post(key: str) -> int:
            headers = {"x-api-key": key}
            return (
                await client.post("/predict", files={"img": HORSE}, headers=headers)
            ).status_code

        assert [await post(key) for key in (ONE, "", ONE, TWO, TWO)] == [200, 401, 429, 200, 429]


async def test_there_is_no_limit_by_default(client: httpx.AsyncClient) -> None:
    """Without the setting, requests are not limited."""
    for _ in range(50):
        assert (await client.post("/predict", files={"img": HORSE})).status_code == 200


def test_left_and_give_back() -> None:
    """A debt is negative, and returned images never fill a bucket beyond its burst."""
    rates = RateLimiter(2, 10)
    assert rates.left("a", 0) == 10
    rates.owe("a", 14, 0)
    assert rates.left("a", 0) == -4
    assert rates.left("a", 3) == 2
    rates.give_back("a", 3)
    assert rates.left("a", 3) == 5
    rates.give_back("a", 100)
    assert rates.left("a", 3) == 10
    rates.give_back("b", 1)
    assert rates.left("b", 3) == 10
