"""`allformers show`: a model as one file."""

from pathlib import Path
from typing import Annotated

import typer

from allformers.cli.console import find_config


def show(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model (gemma3), a preset (gemma3-1b), a folder or a hub name.")
    ],
    class_name: Annotated[
        str | None, typer.Argument(metavar="[CLASS]", help="One class of it, such as Attention.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A file to write to instead of the screen.")] = None,
) -> None:
    """Print a model as one file: each class with all its methods, wherever in the family they are written.

    The file can be run. It has the model's state dict and gives the same logits.
    """
    from allformers.inspection.flatten import classes, flatten
    from allformers.models.registry import READING_ORDER

    entries = {_plain(entry.name): entry for entry in READING_ORDER}
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        reason = "it is a folder" if output.is_dir() else f"there is no folder {output.parent}"
        raise ValueError(f"{output} cannot be written: {reason}")
    try:
        model_class = entries[_plain(name)].load() if _plain(name) in entries else find_config(name)[0]
    except ValueError as error:
        if "/" in name or Path(name).exists():
            raise
        models = ", ".join(entry.name for entry in READING_ORDER)
        raise ValueError(f"there is no model {name}: the models are {models}. As a checkpoint, {error}") from error
    source = flatten(model_class)
    if class_name is not None:
        parts = classes(source)
        if class_name not in parts:
            raise ValueError(f"{model_class.__name__} has no class {class_name}; it has {', '.join(parts)}")
        source = parts[class_name]
    if output is None:
        print(source, end="")
    else:
        output.write_text(source, encoding="utf-8")
        print(output)


def _plain(name: str) -> str:
    """A name without what differs between a command, a class and a module: gemma3, Gemma3."""
    return name.lower().replace("-", "").replace("_", "")
