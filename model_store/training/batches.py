"""Batches: selects and augments the images of each training step.

A batch depends only on the data, the recipe and the number of the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_store.training import cifar10
from model_store.training.augmentation import augment, mix_up
from model_store.training.recipe import Recipe

VIEWS = 0
"""Seed of the views, which are augmented copies of the training set. Runs with different seeds use
the same views, but use the batches of the views in a different order."""


@dataclass(frozen=True)
class Place:
    """Identifies a batch of a view. A view is one augmented copy of the whole training set. Each
    view is used in several epochs."""

    side: int
    """Side of the images in pixels."""
    view: int
    """Number of the view, counted from 0."""
    number: int
    """Number of the batch in the view, counted from 0."""


@dataclass(frozen=True)
class Batch:
    """Augmented images and the outputs that the network should learn for them.

    Attributes:
        images: (n, side, side, 3), from 0 to 255; uint8, or float32 if pairs of images are blended.
        targets: float32 (n, classes), the share of each class in the image.
        place: Place of the batch in the views. None: the images are not used again.
    """

    images: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32]
    place: Place | None


class Batches:
    """Selects the batches of a training run."""

    def __init__(self, recipe: Recipe, train: cifar10.Split) -> None:
        """
        Args:
            recipe: Options of the run, which determine how images are ordered and augmented.
            train: Images to train on.

        Raises:
            ValueError: There are fewer training images than `recipe.batch_size`.
        """
        self._recipe = recipe
        self._train = train
        self.per_epoch = len(train.images) // recipe.batch_size
        if self.per_epoch == 0:
            raise ValueError(
                f"{len(train.images)} images are fewer than --batch-size {recipe.batch_size}: "
                "reduce --batch-size"
            )
        self.steps = recipe.epochs * self.per_epoch

    def at(self, step: int) -> Batch:
        """Return the batch of the step `step`, counted from 0."""
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
