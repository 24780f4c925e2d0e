"""No ordinary photograph up to the pixel limit is rejected for what decoding it takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from benchmarks.decode_cost import picture
from service.decoding.image import identify
from service.decoding.limits import MIB, limits
from service.decoding.pool import Decoders
from service.settings import Settings
from tests.service.synthetic import encode

pytestmark = [pytest.mark.slow, pytest.mark.faults]

IN_A_CONTAINER = 768 * MIB
"""What decoders get in the container of the Kubernetes manifests."""
KILLS: list[str] = []


@pytest.fixture
async def decoders() -> AsyncIterator[Decoders]:
    decoders = Decoders(limits(2, IN_A_CONTAINER, Settings().max_decode_seconds), KILLS.append)
    async with decoders.running():
        yield decoders


SQUARE, WIDE, WEBP = (8000, 8000), (11_300, 5_650), (6160, 6160)


@pytest.mark.parametrize("size", [(4000, 3000), SQUARE, WIDE], ids=str)
@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {"quality": 75}),
        ("RGB", "JPEG", {"quality": 95}),
        ("RGB", "JPEG", {"quality": 90, "subsampling": 0, "optimize": True}),
        ("RGB", "JPEG", {"quality": 75, "progressive": True}),
        ("RGB", "JPEG", {"quality": 90, "progressive": True}),
        ("RGB", "JPEG", {"quality": 85, "progressive": True, "subsampling": 0}),
        ("L", "JPEG", {"quality": 90, "progressive": True}),
        ("CMYK", "JPEG", {"quality": 70, "progressive": True}),
        ("RGB", "PNG", {"compress_level": 6}),
        ("RGBA", "PNG", {"compress_level": 6}),
        ("P", "PNG", {"compress_level": 6}),
        ("RGB", "WEBP", {"quality": 80, "method": 0}),
        ("RGB", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
        ("P", "GIF", {}),
    ],
    ids=lambda value: str(value) if isinstance(value, (str, dict)) else None,
)
async def test_photographs_up_to_the_limit_are_decoded(
    decoders: Decoders, mode: str, kind: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    """Photographs as cameras, editors and browsers write them are decoded with the default
    limits."""
    if kind == "WEBP" and size[0] * size[1] > WEBP[0] * WEBP[1]:
        size = WEBP
    settings = Settings()
    while len(data := encode(picture(mode, size), kind, **options)) > settings.max_upload_bytes:
        size = size[0] * 3 // 4, size[1] * 3 // 4
    image = identify(data, settings.max_image_pixels, decoders.max_memory)
    assert (await decoders.run(image, "photographer", 60.0)).shape == (32, 32, 3)
    assert KILLS == [], f"{len(data):,} bytes"
