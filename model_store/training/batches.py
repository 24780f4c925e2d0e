"""The batches of a training run. The recipe and the number of the step decide each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_store.training import cifar10
from model_store.training.augmentation import augment, mix_up
from model_store.training.recipe import Recipe

VIEWS = 0
"""Seed of the images that come again: runs of other seeds see the same, in another order."""


@dataclass(frozen=True)
class Place:
    """Names the images of a batch among all that come again."""

    side: int
    view: int
    number: int


@dataclass(frozen=True)
class Batch:
    """Augmented images and what the network should say of them.

    Attributes:
        images: uint8, or float32 if mixed, (n, side, side, 3), from 0 to 255.
        targets: float32 (n, classes), the share of each class in the image.
        place: Where these images come again, or None if they are new.
    """

    images: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32]
    place: Place | None


class Batches:
    """All batches of a run, by the number of their step."""

    def __init__(self, recipe: Recipe, train: cifar10.Split) -> None:
        """
        Args:
            recipe: Decides how images are augmented and ordered.
            train: The images to train on.

        Raises ValueError if the images do not fill one batch.
        """
        self._recipe = recipe
        self._train = train
        self.per_epoch = len(train.images) // recipe.batch_size
        if self.per_epoch == 0:
            raise ValueError(f"{len(train.images)} images do not fill a batch: --batch-size")
        self.steps = recipe.epochs * self.per_epoch

    def at(self, step: int) -> Batch:
        """The batch of `step`, counted from 0."""
        recipe = self._recipe
        epoch, number = divmod(step, self.per_epoch)
        side = recipe.side_at(step, self.steps)
        key, place = (recipe.seed, epoch), None
        if recipe.views:
            order = np.random.default_rng((recipe.seed, epoch)).permutation(self.per_epoch)
            number = int(order[number])
            key = (VIEWS, epoch % recipe.views)
            place = Place(side, epoch % recipe.views, number)
        order = np.random.default_rng(key).permutation(len(self._train.images))
        chosen = order[number * recipe.batch_size : (number + 1) * recipe.batch_size]
        rng = np.random.default_rng((*key, number))
        images = augment(self._train.images[chosen], recipe, side, rng)
        targets = np.eye(len(cifar10.CLASSES), dtype=np.float32)[self._train.labels[chosen]]
        if recipe.mixup:
            return Batch(*mix_up(images, targets, recipe.mixup, rng), place)
        return Batch(images, targets, place)
