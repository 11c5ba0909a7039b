"""`allformers experiment`: run experiments that answer a learner's questions."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from allformers.cli.console import Out, messages, write_figures


class ExperimentCommand(TyperCommand):
    """The command with a help that lists the experiments, imported only for this help, since that takes a second."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with the names of all experiments."""
        from allformers.experiments import EXPERIMENTS

        names: Any = next(parameter for parameter in self.params if parameter.name == "names")
        names.help = f"{', '.join(EXPERIMENTS)}. Default: all."
        super().format_help(ctx, formatter)


def experiment(
    names: Annotated[list[str] | None, typer.Argument(help="Names of experiments. Default: all.")] = None,
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
