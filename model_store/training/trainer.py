"""A training run: the network, its average, the optimiser and how far they have come.

Able to step, to save itself as a checkpoint and to go on from one. A batch is decided by the seed
and the number of the step alone.

A step on a CPU is 1.5 times as fast as the obvious one, because global average pooling is replaced
by a mean over the axes: MXNet's pooling hands back gradients in a layout that drops the BatchNorm
of the last stage to a reference implementation.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from model_store.architectures import build
from model_store.device import choose
from model_store.params import Arrays, check_params
from model_store.runtime import is_for_cpu, load_mxnet
from model_store.training import checkpoint, cifar10
from model_store.training.checkpoint import Origin, Progress
from model_store.training.evaluation import Probabilities

AVERAGE_EVERY = 4
"""Steps between two updates of the average."""


class Training:
    """The network, its average and the optimiser on one device, able to step, save and load."""

    def __init__(
        self, origin: Origin, device: str, batches: int, start: Arrays | None = None
    ) -> None:
        """`start`: the weights to begin with. Raises BadParams where they do not fit."""
        self.origin = origin
        self.recipe = recipe = origin.recipe
        self.batches = batches
        self.steps = recipe.epochs * batches
        self.progress = Progress()
        # In order, a run repeats bit for bit. On a GPU it would not anyway: cuDNN adds up as it
        # pleases, and operators that are waited for one by one leave a GPU idle.
        self._mx = load_mxnet(origin.threads, in_order=is_for_cpu(device))
        self.device = choose(self._mx, device)
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
        self._trainer = self._mx.gluon.Trainer(
            self._net.collect_params(),
            "nag",
            {"momentum": recipe.momentum, "wd": recipe.weight_decay, "learning_rate": 0.0},
        )
        self._loss = self._mx.gluon.loss.SoftmaxCrossEntropyLoss()

    def run(self, train: cifar10.Split, test: cifar10.Split) -> Iterator[Progress]:
        """Train from where `progress` stands to the end; yields after every step."""
        progress = self.progress
        while progress.step < self.steps:
            images, labels = self._batch(train, progress.step)
            losses, logits = self._step(images, labels)
            right = int((logits.asnumpy().argmax(axis=1) == labels).sum())
            progress.count(losses.asnumpy(), right)
            if progress.step % AVERAGE_EVERY == 0:
                self._update_average(self.recipe.averaging**AVERAGE_EVERY)
            if progress.step % self.batches == 0:
                progress.close_epoch(self.accuracy(test), self._trainer.learning_rate)
            yield progress

    def accuracy(self, split: cifar10.Split) -> float:
        """Share of `split` that the averaged network gets right."""
        right = 0
        for start in range(0, len(split.images), 500):
            part = slice(start, start + 500)
            logits = self._average(self._to_device(split.images[part])).asnumpy()
            right += int((logits.argmax(axis=1) == split.labels[part]).sum())
        return right / len(split.images)

    def probabilities(self, images: cifar10.Images) -> Probabilities:
        """Of the averaged network: float32 (n, classes)."""
        logits = self._average(self._to_device(images))
        rows: Probabilities = self._mx.nd.softmax(logits, axis=1).asnumpy()
        return rows

    def save(self, folder: pathlib.Path) -> None:
        """A checkpoint in `folder`, replacing the one before; whole or not at all."""
        with checkpoint.saving(folder, self.origin, self.progress) as partial:
            self._net.save_parameters(str(partial / "net.params"))
            self._average.save_parameters(str(partial / "average.params"))
            self._trainer.save_states(str(partial / "optimiser.states"))

    def load(self, saved: pathlib.Path) -> None:
        """Go on from a checkpoint of the same origin."""
        self._net.load_parameters(str(saved / "net.params"), ctx=self.device.context)
        self._average.load_parameters(str(saved / "average.params"), ctx=self.device.context)
        self._trainer.load_states(str(saved / "optimiser.states"))
        self.progress = checkpoint.progress_of(saved)

    def save_average(self, path: pathlib.Path) -> None:
        self._average.save_parameters(str(path))

    def _batch(self, train: cifar10.Split, step: int) -> tuple[cifar10.Images, cifar10.Labels]:
        """The images of one step: decided by the seed and the step alone."""
        epoch, number = divmod(step, self.batches)
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(train.images))
        chosen = order[number * self.recipe.batch_size : (number + 1) * self.recipe.batch_size]
        rng = np.random.default_rng((self.recipe.seed, epoch, number))
        side = self.recipe.side_at(step, self.steps)
        crops = cifar10.augment(train.images[chosen], rng, side, self.recipe.cutout)
        return crops, train.labels[chosen]

    def _step(self, images: cifar10.Images, labels: cifar10.Labels) -> tuple[Any, Any]:
        """One update; losses (n,) and logits (n, classes) before it."""
        self._trainer.set_learning_rate(
            self.recipe.learning_rate_at(self.progress.step, self.steps)
        )
        inputs = self._to_device(images)
        targets = self._mx.nd.array(labels, ctx=self.device.context)
        with self._mx.autograd.record():
            logits = self._net(inputs)
            losses = self._loss(logits, targets)
        losses.backward()
        self._trainer.step(len(images))
        return losses, logits

    def _to_device(self, images: cifar10.Images) -> Any:
        """uint8 (n, side, side, 3) -> float32 (n, 3, side, side) on the device, normalised."""
        mean = np.asarray(cifar10.MEAN, dtype=np.float32)
        std = np.asarray(cifar10.STD, dtype=np.float32)
        pixels = (images.astype(np.float32) / 255 - mean) / std
        planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        return self._mx.nd.array(planes, ctx=self.device.context)

    def _new_network(self) -> Any:
        mx = self._mx

        class Mean(mx.gluon.HybridBlock):  # type: ignore[misc, name-defined]
            def hybrid_forward(self, F: Any, x: Any) -> Any:  # noqa: N803  # Gluon's name
                return F.mean(x, axis=(2, 3), keepdims=True)

        net = build(self.recipe.architecture, len(cifar10.CLASSES))
        *_, last = net.features._children
        if isinstance(net.features._children[last], mx.gluon.nn.GlobalAvgPool2D):
            net.features._children[last] = Mean()
        he = mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2)
        net.initialize(he, ctx=self.device.context)
        net(mx.nd.zeros((1, 3, cifar10.SIDE, cifar10.SIDE), ctx=self.device.context))
        net.hybridize(static_alloc=True, static_shape=True)
        return net

    def _set(self, arrays: Arrays) -> None:
        parameters = self._net._collect_params_with_prefix()
        check_params(arrays, {name: p.shape for name, p in parameters.items()})
        for name, parameter in parameters.items():
            parameter.set_data(self._mx.nd.array(arrays[name], ctx=self.device.context))

    def _update_average(self, keep: float) -> None:
        """average = keep * average + (1 - keep) * network, BatchNorm's statistics included."""
        average = self._average._collect_params_with_prefix()
        for name, parameter in self._net._collect_params_with_prefix().items():
            mean = average[name].data()
            mean[:] = keep * mean + (1 - keep) * parameter.data()
