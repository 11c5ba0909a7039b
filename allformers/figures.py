"""Drawing, with Matplotlib: figures that read in print, on a light page and on a dark one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from allformers.training.runs import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES_OF_TIME = {"steps": "step", "tokens": "tokens", "seconds": "seconds"}
"""What a loss can be drawn against, and what the metrics call it."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by colour-blind readers too. Source: Okabe and Ito 2008, "Color Universal Design"."""


def loss_curves(runs: Sequence[str | Path], by: str = "steps") -> "Figure":
    """Draw the losses of runs: of training as a thin line, of validation as a thick one with a mark at each figure.

    Args:
        runs: their folders.
        by: what to draw the losses against, a key of `AXES_OF_TIME`.

    Raises:
        ValueError: there is no run, a folder holds none, or `by` is not known.
    """
    from matplotlib.figure import Figure

    if by not in AXES_OF_TIME:
        raise ValueError(f"by must be one of {', '.join(AXES_OF_TIME)}, not {by!r}")
    if not runs:
        raise ValueError("there is nothing to draw: name the folder of a run")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for count, folder in enumerate(map(Path, runs)):
        lines = read_metrics(folder)
        if not lines:
            raise ValueError(f"{folder} holds no metrics of a run: there is no line in {folder / 'metrics.jsonl'}")
        key, colour = AXES_OF_TIME[by], COLOURS[count % len(COLOURS)]
        measured = [line for line in lines if "validation_loss" in line]
        name = folder.resolve().name
        axes.plot(
            [line[key] for line in lines],
            [line["loss"] for line in lines],
            color=colour,
            alpha=0.45,
            linewidth=1,
            label=f"{name}, training",
        )
        if measured:
            last = measured[-1]["validation_loss"]
            axes.plot(
                [line[key] for line in measured],
                [line["validation_loss"] for line in measured],
                color=colour,
                linewidth=2,
                marker="o",
                markersize=4,
                label=f"{name}, validation: {last:.3f} at the end",
            )
    axes.set_xlabel(by)
    axes.set_ylabel("loss, in nats a token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def save(figure: "Figure", place: str | Path) -> list[Path]:
    """Write a figure as `place.png` and `place.svg`; where they are.

    Raises:
        ValueError: the folder is not there.
    """
    from matplotlib import rc_context

    place = Path(place)
    if not place.parent.is_dir():
        raise ValueError(f"there is no folder {place.parent} to put the figure in")
    place = place.with_suffix("") if place.suffix in {".png", ".svg"} else place
    paths = [place.with_name(f"{place.name}.{ending}") for ending in ("png", "svg")]
    with rc_context({"svg.hashsalt": "allformers"}):  # with this, and without a date, the same run gives the same file
        figure.savefig(paths[0], dpi=200)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
