"""Decodes images in this process, for tests of headers and pixels."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from service.decoding.image import Pixels, identify
from service.decoding.picture import SIDE
from service.errors import BadImage, ImageTooExpensive, ImageTooLarge, UnsupportedImageType

MAX_PIXELS = 64_000_000


REFUSALS = (BadImage, UnsupportedImageType, ImageTooLarge, ImageTooExpensive)


def by_name(files: dict[str, bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("data", files.values(), ids=files.keys())


def is_what_was_promised(pixels: npt.NDArray[Any]) -> bool:
    return (
        pixels.shape == (SIDE, SIDE, 3)
        and pixels.dtype == np.uint8
        and pixels.flags.c_contiguous
        and not pixels.flags.writeable
    )


def decode(data: bytes, max_pixels: int) -> Pixels:
    """Header and pixels, in this process."""
    return identify(data, max_pixels).decode()


def is_answered(data: bytes, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether what comes is an array as promised, or a refusal with a reason."""
    try:
        pixels = decode(data, max_pixels)
    except REFUSALS as refusal:
        return str(refusal) != ""
    return is_what_was_promised(pixels)


def rendered_plainly(path: pathlib.Path) -> npt.NDArray[np.uint8]:
    """The same picture by the shortest way, which costs more: every pixel, one filter."""
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")
        picture = ImageOps.exif_transpose(image).convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture)
    return np.asarray(ImageOps.fit(paper.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC))
