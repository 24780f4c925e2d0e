"""Images of every kind fit into the memory of the decoders that they are given to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.decoding.image import BYTES_PER_PIXEL, EncodedImage, identify
from service.decoding.launch import Template
from service.decoding.limits import (
    MIB,
    MIN_EXPENSIVE_MEMORY,
    ORDINARY_IMAGE_MEMORY,
    ORDINARY_MEMORY,
    Limits,
)
from tests.service.synthetic import encode

pytestmark = pytest.mark.slow

LEAST = Limits(1, 1, MIN_EXPENSIVE_MEMORY, 2.0)

FILES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    # what it is: kind, mode, format, options of Pillow
    "JPEG": ("JPEG", "RGB", "JPEG", {}),
    "progressive JPEG": ("JPEG progressive", "RGB", "JPEG", {"progressive": True}),
    "progressive JPEG, 4:4:4": (
        *("JPEG progressive", "RGB", "JPEG"),
        {"progressive": True, "subsampling": 0},
    ),
    "progressive JPEG, CMYK": ("JPEG progressive", "CMYK", "JPEG", {"progressive": True}),
    "PNG": ("PNG", "RGBA", "PNG", {"compress_level": 1}),
    "PNG, gray and alpha": ("PNG", "LA", "PNG", {"compress_level": 1}),
    "PNG, gray of 16 bits": ("PNG", "I;16", "PNG", {"compress_level": 1}),
    "PNG, palette": ("PNG palette", "P", "PNG", {"compress_level": 1}),
    "WebP": ("WebP", "RGB", "WEBP", {"method": 0}),
    "WebP, alpha": ("WebP", "RGBA", "WEBP", {"method": 0}),
    "WebP, lossless": (
        *("WebP lossless", "RGBA", "WEBP"),
        {"method": 0, "quality": 0, "lossless": True},
    ),
    "BMP": ("BMP", "RGB", "BMP", {}),
    "GIF": ("GIF", "P", "GIF", {}),
}


def photo(mode: str, width: int, height: int) -> Image.Image:
    """Smooth shapes with some noise."""
    random = np.random.default_rng(0)
    blocks = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
    smooth = blocks.resize((width, height), Image.Resampling.BICUBIC)
    tile = random.integers(0, 9, (256, 256, 3), np.uint8)
    grain = np.tile(tile, (-(-height // 256), -(-width // 256), 1))[:height, :width]
    image = Image.fromarray(np.asarray(smooth) // 2 + grain)
    if mode in ("RGBA", "LA"):
        image.putalpha(image.getchannel("G"))
    if mode == "P":
        return image.quantize(64, Image.Quantize.FASTOCTREE)
    return image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)


def largest(name: str, max_memory: int) -> EncodedImage:
    """An image that takes at most `max_memory`, and nearly as much."""
    kind, mode, format_, options = FILES[name]
    pixels = min(max_memory / BYTES_PER_PIXEL[kind], 12_000_000)
    while True:
        width, height = int((pixels * 4 / 3) ** 0.5), int((pixels * 3 / 4) ** 0.5)
        image = identify(encode(photo(mode, width, height), format_, **options), 64_000_000)
        assert image.kind == kind
        if image.memory <= max_memory:
            return image
        pixels *= 0.99 * max_memory / image.memory


@pytest.mark.parametrize("name", FILES)
async def test_ordinary_images_fit_into_their_decoders(template: Template, name: str) -> None:
    """An image that counts as ordinary does not fail in a new decoder for its memory."""
    await _decode(template, largest(name, ORDINARY_IMAGE_MEMORY), ORDINARY_MEMORY)


@pytest.mark.parametrize(
    "name", ["progressive JPEG, 4:4:4", "PNG", "WebP", "WebP, alpha", "WebP, lossless", "BMP"]
)
async def test_expensive_images_fit_into_their_decoders(template: Template, name: str) -> None:
    """Nor does an image that is accepted, where these decoders have least memory."""
    await _decode(template, largest(name, LEAST.max_image_memory), MIN_EXPENSIVE_MEMORY)


async def _decode(template: Template, image: EncodedImage, memory: int) -> None:
    process = await template.fork(memory, 0)
    await process.ready()
    fault, cause = await process.decode(image, 60, 600)
    process.close()
    assert fault == 0, (image, image.memory / MIB, cause)
