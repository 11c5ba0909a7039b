"""`allformers experiment`: run experiments that answer a learner's questions."""

from typing import Annotated

import typer

from allformers.cli.console import Out, messages, write_figures


def experiment(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="causal-mask, pre-norm, positions, shifted-targets, sampling, scale, kv-cache, weight-tying. "
            "Default: all."
        ),
    ] = None,
    out: Out = None,
) -> None:
    """Run an experiment that answers a learner's question: numbers, a figure and a conclusion."""
    from allformers.experiments import EXPERIMENTS

    unknown = [name for name in names or () if name not in EXPERIMENTS]
    if unknown:
        raise ValueError(f"there is no experiment {unknown[0]}; there are: {', '.join(EXPERIMENTS)}")
    sections = {}
    for name in names or EXPERIMENTS:
        found = EXPERIMENTS[name]()
        messages.print(f"[dim]{name}[/dim]")
        print(f"{found.question}\n{found.conclusion}\n")
        sections[found.question if out is not None and out.suffix == ".html" else name] = (
            found.conclusion,
            found.figure,
        )
    if out is not None:
        write_figures("Experiments", sections, out)
