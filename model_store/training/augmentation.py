"""Augmentation: makes random variations of training images.

`augment` mirrors and crops each image at random. A recipe can request further variations, because
uploaded photographs differ from CIFAR-10's images in the size of the object, the resizing filter,
colors and sharpness. `mix_up` blends pairs of images and their labels.

Sources: He et al. 2015, arXiv 1512.03385, section 4.2 (crops); DeVries and Taylor 2017, arXiv
1708.04552 (cutout); Zhang et al. 2017, arXiv 1710.09412 (mixup).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Resampling

from model_store.training.cifar10 import MEAN, SIDE, Images
from model_store.training.recipe import Recipe

PADDING = 4
"""Maximum number of pixels by which a crop may extend beyond the image's edge, if the crop has the
image's size."""
MARGIN = 12
"""Width in pixels of the border that is added around an image for crops that are larger than the
image. The border is the reflection of the image."""
GRAY = tuple(round(255 * mean) for mean in MEAN)
"""Mean color of CIFAR-10's training images, from 0 to 255."""
FILTERS = (
    Resampling.BOX,
    Resampling.BILINEAR,
    Resampling.HAMMING,
    Resampling.BICUBIC,
    Resampling.LANCZOS,
)
"""Resizing filters. `_zoom` chooses one of these filters at random for each image."""
BRIGHTNESS = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in the brightness of a pixel."""

Lengths = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]


def augment(images: Images, recipe: Recipe, side: int, rng: np.random.Generator) -> Images:
    """Vary each image at random, and crop it to `side` x `side` pixels.

    Args:
        images: uint8 (n, 32, 32, 3).
        recipe: Recipe whose options `zoom`, `color`, `sharpness` and `cutout` are used. An option
            of 0 disables that variation.
        side: Width and height of the result, in pixels, at most 32.
        rng: Generator of all random numbers.

    Returns:
        uint8 (n, side, side, 3).
    """
    mirrored = rng.random(len(images))[:, None, None, None] < 0.5
    images = np.where(mirrored, images[:, :, ::-1], images)
    crops = _zoom(images, side, recipe.zoom, rng) if recipe.zoom else _crop(images, side, rng)
    if recipe.color or recipe.sharpness:
        pixels = crops.astype(np.float32)
        if recipe.color:
            pixels = _recolor(pixels, recipe.color, rng)
        if recipe.sharpness:
            pixels = _sharpen(pixels, recipe.sharpness, rng)
        crops = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if recipe.cutout:
        _cut_out(crops, recipe.cutout, rng)
    return crops


def mix_up(
    images: Images, targets: Floats, alpha: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Blend each image with another image of the batch, and blend their rows of `targets`.

    The share of each image is drawn from Beta(alpha, alpha). If the drawn share is below one half,
    one minus the drawn share is used instead.

    Args:
        images: uint8 (n, side, side, 3).
        targets: float32 (n, classes).
        alpha: Parameter of the distribution of shares, above 0.
        rng: Generator of all random numbers.

    Returns:
        The blended images, float32 (n, side, side, 3), and their targets, float32 (n, classes).
    """
    share = rng.beta(alpha, alpha, len(images)).astype(np.float32)
    share = np.maximum(share, 1 - share)
    partners = rng.permutation(len(images))
    of_image, of_row = share[:, None, None, None], share[:, None]
    return (
        images * of_image + images[partners] * (1 - of_image),
        targets * of_row + targets[partners] * (1 - of_row),
    )


def _crop(images: Images, side: int, rng: np.random.Generator) -> Images:
    """Crop each image at a random position.

    A crop of the image's size may extend over the edge by up to `PADDING` pixels. The part of the
    crop outside of the image is black. A smaller crop lies within the image.
    """
    if side == SIDE:
        images = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    places = np.lib.stride_tricks.sliding_window_view(images, (side, side), (1, 2))  # type: ignore[call-overload]  # NumPy 1.26's stub lacks axes
    top, left = rng.integers(0, places.shape[1], (2, len(images)))
    return np.ascontiguousarray(places[np.arange(len(images)), top, left].transpose(0, 2, 3, 1))


def _zoom(images: Images, side: int, zoom: float, rng: np.random.Generator) -> Images:
    """Resize a crop of random size, shape and position, with a random filter.

    The size of the crop is `side` times a factor from exp(-zoom) to exp(zoom). The crop's ratio of
    width to height is from exp(-zoom / 2) to exp(zoom / 2). Beyond the edge of the image, the crop
    contains the reflection of the image.
    """
    count = len(images)
    around = (MARGIN, MARGIN)
    padded = np.pad(images, ((0, 0), around, around, (0, 0)), mode="reflect")
    scale, shape = rng.uniform(-zoom, zoom, (2, count))
    width = np.minimum(side * np.exp(scale + shape / 4), padded.shape[2])
    height = np.minimum(side * np.exp(scale - shape / 4), padded.shape[1])
    left = _start(width, side, rng)
    top = _start(height, side, rng)
    boxes = np.stack([left, top, left + width, top + height], axis=1).tolist()
    filters = rng.integers(0, len(FILTERS), count).tolist()
    crops = np.empty((count, side, side, 3), dtype=np.uint8)
    for index, (box, number) in enumerate(zip(boxes, filters, strict=True)):
        image = Image.fromarray(padded[index])
        crops[index] = np.asarray(image.resize((side, side), FILTERS[number], box))
    return crops


def _start(length: Lengths, side: int, rng: np.random.Generator) -> Lengths:
    """Return random positions in the padded image, where crops of the given lengths begin.

    Crops that are smaller than the image lie within it. If `side` is the image's size, a crop may
    also extend over the edge by up to `PADDING` pixels.
    """
    slack = np.abs(SIDE - length) / 2 + (PADDING if side == SIDE else 0)
    middle = MARGIN + (SIDE - length) / 2
    start = middle + rng.uniform(-1, 1, len(length)) * slack
    clipped: Lengths = np.clip(start, 0, SIDE + 2 * MARGIN - length)
    return clipped


def _recolor(pixels: Floats, strength: float, rng: np.random.Generator) -> Floats:
    """Change the saturation, the contrast, the brightness and the color balance of each image."""
    count = len(pixels)

    def factors(spread: float, channels: int = 1) -> Floats:
        drawn = rng.uniform(1 - spread, 1 + spread, (count, 1, 1, channels))
        return drawn.astype(np.float32)

    gray = (pixels @ BRIGHTNESS)[..., None]
    pixels = gray + (pixels - gray) * factors(2 * strength)
    mean = pixels.mean(axis=(1, 2, 3), keepdims=True)
    pixels = mean * factors(strength) + (pixels - mean) * factors(strength)
    recolored: Floats = pixels * factors(strength / 3, channels=3)
    return recolored


def _sharpen(pixels: Floats, strength: float, rng: np.random.Generator) -> Floats:
    """Blur or sharpen each image.

    The difference between the image and a blurred copy is multiplied by a random number and added
    to the image. The number is from -`strength` to `strength`. If the number is -1, the result is
    the blurred copy.
    """
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    blurred = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16
    amount = rng.uniform(-strength, strength, (len(pixels), 1, 1, 1)).astype(np.float32)
    sharpened: Floats = pixels + (pixels - blurred) * amount
    return sharpened


def _cut_out(crops: Images, cutout: int, rng: np.random.Generator) -> None:
    """Replace a square of `cutout` x `cutout` pixels at a random position in each crop by gray."""
    count, side = crops.shape[:2]
    first = rng.integers(0, side, (2, count, 1)) - cutout // 2
    pixels = np.arange(side)
    rows, columns = (first <= pixels) & (pixels < first + cutout)
    crops[rows[:, :, None] & columns[:, None, :]] = GRAY
