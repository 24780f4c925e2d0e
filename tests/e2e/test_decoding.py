"""Images made to exhaust or to kill decoders, sent to a server in a process of its own."""

from __future__ import annotations

import httpx
import pytest
from PIL import Image

from tests.e2e.process import SCRIPTED, Server
from tests.faults.process import resident
from tests.service.synthetic import encode

ATTACKER, OTHER = "a-key-of-an-attacker", "a-key-of-another-client"
HOSTILE = {
    "a GIF that asks for 4 GiB": bytes.fromhex(
        "47494638396120002000800000000000ffffff21f90408000000002c00000000ffffffff0002024401003b"
    ),
    "a GIF that is larger than its canvas": encode(Image.new("P", (7000, 7000)), "GIF").replace(
        (7000).to_bytes(2, "little") * 2, b"\1\0\1\0", 1
    ),
    "a lossless WebP of 16383 x 3906": encode(
        Image.new("RGB", (16_383, 3906)), "WEBP", lossless=True, method=0
    ),
}
SLACK = 32
"""MB that allocators keep."""


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_take_no_memory_of_the_server(name: str) -> None:
    """Hostile images are answered, and the memory to decode them is not that of the server."""
    with Server(*SCRIPTED) as server:
        server.wait_until_ready()
        rest = resident(server.pid)
        answer = httpx.post(f"{server.url}/predict", files={"img": HOSTILE[name]}, timeout=30)
        assert resident(server.pid) - rest < SLACK
        assert server.stop() == 0
    if answer.status_code != 200:
        assert answer.json()["code"] in ("image_too_large", "image_too_expensive")


@pytest.mark.slow
def test_client_whose_images_kill_decoders_is_rejected() -> None:
    """After some kills the client gets 429; kills are counted, and other clients are served."""
    keys = {"SHOAL_API_KEYS": f"{ATTACKER},{OTHER}", "SHOAL_MAX_DECODE_SECONDS": "0.05"}
    expensive = encode(Image.new("RGB", (4000, 4000)), "PNG", compress_level=1)
    ordinary = encode(Image.new("RGB", (300, 300)), "PNG")
    with Server(*SCRIPTED, **keys) as server:
        server.wait_until_ready()

        def post(key: str, image: bytes) -> httpx.Response:
            headers = {"x-api-key": key}
            return httpx.post(
                f"{server.url}/predict", files={"img": image}, headers=headers, timeout=30
            )

        answers = [post(ATTACKER, expensive) for _ in range(7)]
        other = post(OTHER, ordinary)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert server.stop() == 0
    codes = [answer.json()["code"] for answer in answers]
    assert codes[:5] == ["image_too_expensive"] * 5 and codes[-1] == "decoders_killed"
    assert answers[-1].status_code == 429 and 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert other.status_code == 200
    kills = codes.count("image_too_expensive")
    assert f'shoal_decoder_kills_total{{reason="cpu_time"}} {kills}.0' in metrics
