"""Draws plots of an evaluation and of a training run.

This module needs matplotlib, which the extra `train` installs.
"""

from __future__ import annotations

import pathlib

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_store.training.checkpoint import Progress
from model_store.training.evaluation import Evaluation


def draw_evaluation(evaluation: Evaluation, path: pathlib.Path) -> None:
    """Draw the confusion matrix and the reliability diagram, and write them to a PNG file."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    confusion, reliability = figure.subplots(1, 2)
    _draw_confusion(evaluation, confusion)
    _draw_reliability(evaluation, reliability)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_progress(progress: Progress, path: pathlib.Path) -> None:
    """Draw the loss and the accuracy by epoch, and write them to a PNG file."""
    epochs = range(1, len(progress.epochs) + 1)
    figure = Figure(figsize=(9, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(epochs, [epoch.loss for epoch in progress.epochs])
    loss.set(title="Training loss", xlabel="epoch", ylabel="loss")
    trained = [100 * epoch.train_accuracy for epoch in progress.epochs]
    accuracy.plot(epochs, trained, label="training, augmented")
    measured = [epoch.held_out_accuracy for epoch in progress.epochs]
    held_out = [100 * share for share in measured if share is not None]
    if held_out:
        accuracy.plot(epochs, held_out, label="held out")
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="%")
    accuracy.legend()
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_confusion(evaluation: Evaluation, axes: Axes) -> None:
    names = list(evaluation.by_class)
    shares = [[count / max(1, sum(row)) for count in row] for row in evaluation.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for row, counts in enumerate(evaluation.confusion):
        for column, count in enumerate(counts):
            color = "white" if shares[row][column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    axes.set(title=f"accuracy {evaluation.accuracy:.2%}", xlabel="predicted class", ylabel="class")


def _draw_reliability(evaluation: Evaluation, axes: Axes) -> None:
    for one in evaluation.reliability:
        if one.probability is not None and one.accuracy is not None:
            middle, width = (one.above + one.to) / 2, (one.to - one.above) * 0.9
            axes.bar(middle, one.accuracy, width, color="tab:blue", alpha=0.6)
            axes.plot(one.probability, one.accuracy, "o", color="tab:blue", markersize=4)
            axes.text(middle, 0.01, str(one.images), ha="center", fontsize=7, rotation=90)
    axes.plot([0, 1], [0, 1], "--", color="gray")
    axes.set(
        title=f"calibration error {evaluation.calibration_error:.2%}",
        xlabel="probability of the predicted class (in the bars: number of images)",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.grid(alpha=0.3)
