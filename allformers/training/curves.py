"""Loss curves of training runs, drawn from their metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from allformers.inspection.figures import COLOURS, drawing, new_figure, style_axes
from allformers.training.runs import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


AXES_OF_TIME = {"steps": "step", "tokens": "tokens", "seconds": "seconds"}
"""X axes of a loss curve, and their names in the metrics."""


def loss_curves(runs: Sequence[str | Path], by: str = "steps") -> "Figure":
    """Draw the loss curves of runs: training as a thin line, validation as a thick one with a mark at each value.

    Args:
        runs: their folders.
        by: the x axis, a key of `AXES_OF_TIME`.

    Raises:
        ValueError: there is no run, a folder holds none, or `by` is not known.
    """
    if by not in AXES_OF_TIME:
        raise ValueError(f"by must be one of {', '.join(AXES_OF_TIME)}, not {by!r}")
    if not runs:
        raise ValueError("there is nothing to draw: name the folder of a run")
    with drawing():
        figure = new_figure(8, 4.5)
        axes = figure.add_subplot()
        for count, folder in enumerate(map(Path, runs)):
            lines = read_metrics(folder)
            if not lines:
                raise ValueError(f"{folder} holds no metrics of a run: there is no line in {folder / 'metrics.jsonl'}")
            key, colour, name = AXES_OF_TIME[by], COLOURS[count % len(COLOURS)], folder.resolve().name
            x, losses = [line[key] for line in lines], [line["loss"] for line in lines]
            axes.plot(x, losses, color=colour, alpha=0.45, linewidth=1, label=f"{name}, training")
            measured = [line for line in lines if "validation_loss" in line]
            if measured:
                losses = [line["validation_loss"] for line in measured]
                label = f"{name}, validation: {losses[-1]:.3f} at the end"
                x = [line[key] for line in measured]
                axes.plot(x, losses, color=colour, linewidth=2, marker="o", markersize=4, label=label)
        style_axes(axes, by, "loss, in nats a token")
        axes.legend()
    return figure
