"""Trainer: runs the steps of a training run.

One network is trained by gradient descent. A second network has the exponential moving average of
its weights. The second network is the result.

On a CPU, MXNet's global average pooling is replaced by a mean over the axes, which makes a step 1.5
times as fast. MXNet's pooling returns gradients in a memory layout that BatchNorm processes slowly.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model_store.mxnet.architectures import build
from model_store.mxnet.device import choose, context
from model_store.mxnet.runtime import is_for_cpu, load_mxnet
from model_store.params import Arrays, check_params
from model_store.training import checkpoint, cifar10
from model_store.training.batches import Batch, Batches
from model_store.training.checkpoint import Origin, Progress
from model_store.training.evaluation import Probabilities
from model_store.training.teacher import Memory, Teachers, Version

AVERAGE_EVERY = 4
"""Number of steps between two updates of the averaged network."""


class Trainer:
    """Trains a network on one device, and maintains the averaged network."""

    def __init__(
        self,
        origin: Origin,
        device: str,
        batches: Batches,
        start: Arrays | None = None,
        teachers: Sequence[Version] = (),
        memory: Memory | None = None,
    ) -> None:
        """
        Args:
            origin: Recipe, data and other inputs that determine the weights.
            device: auto, cpu, gpu or gpu:N.
            batches: Batches of images to train on.
            start: Weights that the run starts from. None: random weights.
            teachers: Networks that the network learns from. Empty: the network learns from labels
                only.
            memory: Stores the logits of the teachers. None: the teachers run on every batch.

        Raises:
            BadParams: `start` or the parameters of a teacher do not fit the architecture.
            DeviceUnavailable, BackendUnavailable.
        """
        self.origin = origin
        self.recipe = recipe = origin.recipe
        self.batches = batches
        self.steps = batches.steps
        self.progress = Progress()
        # On a CPU, operators run in order, so equal runs give exactly the same weights. On a GPU,
        # running operators in order would be slower and would not help: the order in which cuDNN
        # adds numbers varies.
        self._mx = load_mxnet(origin.threads, in_order=is_for_cpu(device))
        self.device = choose(self._mx, device)
        self._context = context(self._mx, self.device)
        self.mxnet_version: str = self._mx.__version__
        self._mx.random.seed(recipe.seed)
        self._net = self._new_network()
        self._average = self._new_network()
        if start is not None:
            self._set(start)
        self._update_average(keep=0.0)
        for name, parameter in self._net.collect_params().items():
            if name.endswith(("gamma", "beta", "bias")):
                parameter.wd_mult = 0.0
        self._optimizer = self._mx.gluon.Trainer(
            self._net.collect_params(),
            "nag",
            {"momentum": recipe.momentum, "wd": recipe.weight_decay, "learning_rate": 0.0},
        )
        self._loss = self._mx.gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
        self._divergence = self._mx.gluon.loss.KLDivLoss(from_logits=False)
        self._teachers = None
        if teachers:
            self._teachers = Teachers(self._mx, self._context, teachers, memory)

    def run(self, held_out: cifar10.Split) -> Iterator[Progress]:
        """Train from the current progress to the end. Yields the progress after every step.

        Args:
            held_out: Images on which the accuracy of the averaged network is measured after every
                epoch. If there are no held-out images, the accuracy is not measured.
        """
        progress = self.progress
        while progress.step < self.steps:
            batch = self.batches.at(progress.step)
            losses, logits = self._step(batch)
            correct = int((logits.asnumpy().argmax(axis=1) == batch.targets.argmax(axis=1)).sum())
            progress.count(losses.asnumpy(), correct)
            if progress.step % AVERAGE_EVERY == 0:
                self._update_average(self.recipe.averaging**AVERAGE_EVERY)
            if progress.step % self.batches.per_epoch == 0:
                accuracy = self.accuracy(held_out) if len(held_out.images) else None
                progress.close_epoch(accuracy, self._optimizer.learning_rate)
            yield progress

    def accuracy(self, split: cifar10.Split) -> float:
        """Return the share of the images that the averaged network classifies correctly."""
        correct = 0
        for start in range(0, len(split.images), 500):
            part = slice(start, start + 500)
            logits = self._average(self._to_device(split.images[part])).asnumpy()
            correct += int((logits.argmax(axis=1) == split.labels[part]).sum())
        return correct / len(split.images)

    def probabilities(self, images: cifar10.Images) -> Probabilities:
        """Compute the probabilities of images with the averaged network: float32 (n, classes)."""
        logits = self._average(self._to_device(images))
        rows: Probabilities = self._mx.nd.softmax(logits, axis=1).asnumpy()
        return rows

    def save(self, folder: pathlib.Path) -> None:
        """Save a checkpoint in `folder`, which replaces the previous checkpoint."""
        with checkpoint.saving(folder, self.origin, self.progress) as partial:
            self._net.save_parameters(str(partial / "net.params"))
            self._average.save_parameters(str(partial / "average.params"))
            self._optimizer.save_states(str(partial / "optimiser.states"))

    def load(self, saved: pathlib.Path) -> None:
        """Load a checkpoint, which must have the same origin."""
        self._net.load_parameters(str(saved / "net.params"), ctx=self._context)
        self._average.load_parameters(str(saved / "average.params"), ctx=self._context)
        self._optimizer.load_states(str(saved / "optimiser.states"))
        self.progress = checkpoint.progress_of(saved)

    def save_average(self, path: pathlib.Path) -> None:
        """Write the parameters of the averaged network to a `.params` file."""
        self._average.save_parameters(str(path))

    def _step(self, batch: Batch) -> tuple[Any, Any]:
        """Update the network with one batch.

        Returns the losses (n,) and the logits (n, classes), both computed before the update.
        """
        recipe = self.recipe
        self._optimizer.set_learning_rate(recipe.learning_rate_at(self.progress.step, self.steps))
        inputs = self._to_device(batch.images)
        targets = self._mx.nd.array(batch.targets, ctx=self._context)
        expected = self._teacher_probabilities(batch, inputs)
        with self._mx.autograd.record():
            logits = self._net(inputs)
            losses = self._loss(logits, targets)
            if expected is not None:
                divergence = self._divergence(logits / recipe.temperature, expected)
                # The factor makes these gradients about as large as the gradients of the labels.
                divergence = divergence * recipe.temperature**2
                losses = (1 - recipe.teacher_weight) * losses + recipe.teacher_weight * divergence
        losses.backward()
        self._optimizer.step(len(batch.images))
        return losses, logits

    def _teacher_probabilities(self, batch: Batch, inputs: Any) -> Any:
        """Return the teachers' probabilities (n, classes) at the recipe's temperature.

        Returns None if there are no teachers.
        """
        if self._teachers is None:
            return None
        logits = self._teachers.logits(batch.place, inputs)
        rows = self._mx.nd.array(logits.astype(np.float32), ctx=self._context)
        return self._mx.nd.softmax(rows / self.recipe.temperature, axis=1)

    def _to_device(self, images: npt.NDArray[Any]) -> Any:
        """Normalize images and copy them to the device.

        Args:
            images: (n, side, side, 3), from 0 to 255.

        Returns:
            float32 (n, 3, side, side).
        """
        mean = np.asarray(cifar10.MEAN, dtype=np.float32)
        std = np.asarray(cifar10.STD, dtype=np.float32)
        pixels = (images.astype(np.float32) / 255 - mean) / std
        planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        return self._mx.nd.array(planes, ctx=self._context)

    def _new_network(self) -> Any:
        mx = self._mx

        class Mean(mx.gluon.HybridBlock):  # type: ignore[misc, name-defined]
            def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803  # Gluon's name
                return F.mean(x, axis=(2, 3), keepdims=True)

        net = build(self.recipe.architecture, len(cifar10.CLASSES))
        for place, layer in net.features._children.items():
            if isinstance(layer, mx.gluon.nn.GlobalAvgPool2D):
                net.features._children[place] = Mean()
        he = mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2)
        net.initialize(he, ctx=self._context)
        net(mx.nd.zeros((1, 3, cifar10.SIDE, cifar10.SIDE), ctx=self._context))
        net.hybridize(static_alloc=True, static_shape=True)
        return net

    def _set(self, arrays: Arrays) -> None:
        parameters = self._net._collect_params_with_prefix()
        check_params(arrays, {name: p.shape for name, p in parameters.items()})
        for name, parameter in parameters.items():
            parameter.set_data(self._mx.nd.array(arrays[name], ctx=self._context))

    def _update_average(self, keep: float) -> None:
        """Set the averaged network to keep * average + (1 - keep) * network.

        The statistics of BatchNorm are averaged as well.
        """
        average = self._average._collect_params_with_prefix()
        for name, parameter in self._net._collect_params_with_prefix().items():
            mean = average[name].data()
            mean[:] = keep * mean + (1 - keep) * parameter.data()
