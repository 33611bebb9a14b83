"""Pictures of a run: the curves of classifier and VAE, the confusion matrix."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_confusion", "draw_curves", "pyplot"]


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def draw_curves(run: Path) -> list[Path]:
    """Draw `curves.png` (loss and accuracy by epoch) and `vae_curves.png` of the run's folder; returns what was
    drawn."""
    drawn = []
    plt = pyplot()
    for source, name, panels in (
        (
            "history.csv",
            "curves.png",
            (("loss", ("loss", "validation_loss")), ("accuracy", ("accuracy", "validation_accuracy"))),
        ),
        (
            "vae_history.csv",
            "vae_curves.png",
            (
                ("loss", ("loss", "validation_loss")),
                ("KL divergence (nats)", ("divergence", "validation_divergence")),
            ),
        ),
    ):
        if not (run / source).exists():
            continue
        with (run / source).open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            continue
        figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.6), layout="constrained")
        for axis, (title, columns) in zip(axes, panels, strict=True):
            for column, label in zip(columns, ("training", "validation"), strict=True):
                axis.plot([int(r["epoch"]) for r in rows], [float(r[column]) for r in rows], label=label)
            axis.set(xlabel="epoch", ylabel=title)
            axis.grid(alpha=0.3)
            axis.legend()
        figure.savefig(run / name, dpi=110)
        plt.close(figure)
        drawn.append(run / name)
    return drawn


def draw_confusion(counts: NDArray[np.int64], labels: list[str], columns: list[str], out: Path) -> Path:
    """Draw a confusion matrix int[n, m] (rows: the class people gave, columns: the prediction) with shares of each
    row."""
    plt = pyplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.62 * max(len(labels), len(columns))
    figure, axis = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axis.set_yticks(range(len(labels)), labels)
    axis.set(xlabel="predicted", ylabel="class given by people")
    for i in range(len(labels)):
        for j in range(len(columns)):
            if counts[i, j]:
                colour = "white" if shares[i, j] > 0.5 else "black"
                axis.text(
                    j, i, f"{counts[i, j]}\n{shares[i, j]:.1%}", ha="center", va="center", color=colour, fontsize=8
                )
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return out
