"""What the commands share: where they write, what they take for a device or a dtype, how they say a size."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console

messages = Console(stderr=True)
"""For what is said beside a command's output."""


class Dtype(StrEnum):
    """What a number is stored as."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Layout(StrEnum):
    """How the weights of linear layers lie in memory."""

    plain = "plain"
    packed = "packed"
    int8 = "int8"
    int4 = "int4"


LAYOUT_HELP = (
    "How the weights lie in memory: plain; packed for speed, after some seconds and in twice the memory; or rounded to "
    "int8 or int4, which takes less memory and some of the quality."
)


def lay_out(model: Any, weights: Layout) -> None:
    """Prepare a model for inference, if its weights are to lie otherwise than plain.

    Raises:
        ValueError: they cannot.
    """
    if weights is Layout.plain:
        return
    from allformers.speed import PackedLinear, prepare

    try:
        prepare(model, weights)
    except ImportError as error:
        raise ValueError(str(error)) from error
    if weights is Layout.packed and not any(isinstance(layer, PackedLinear) for layer in model.modules()):
        messages.print("[dim]no layer of this model is large enough to gain from packing[/dim]")


def announce(model: str) -> None:
    """Say so before what may take a while: asking the hub."""
    from allformers.checkpoints import is_hub_name

    if is_hub_name(model):
        messages.print(f"[dim]looking for {model} on the Hugging Face hub[/dim]")


def find_presets() -> dict[str, tuple[Any, Any]]:
    """All presets by name, each with its model's class and the function that makes it."""
    from allformers.models import READING_ORDER

    return {
        preset.replace("_", "-"): (model_class, make)
        for model_class in (entry.load() for entry in READING_ORDER)
        for preset, make in model_class.format.config_class.presets().items()
    }


def find_config(name: str) -> tuple[Any, Any]:
    """The class and the configuration that a preset's name, a folder or a hub name stands for; nothing is loaded.

    Raises:
        ValueError: it stands for none; the message lists the presets.
    """
    from allformers.checkpoints import CheckpointError
    from allformers.models import load_config

    presets = find_presets()
    if name.replace("_", "-") in presets:
        model_class, make = presets[name.replace("_", "-")]
        return model_class, make()
    announce(name)
    try:
        return load_config(name)
    except CheckpointError as error:
        raise ValueError(f"{error}. The presets are: {', '.join(presets)}") from error


def find_device(name: str) -> Any:
    """The device of that name, if it can be used; "auto" is a GPU if there is one.

    Raises:
        ValueError: it cannot be used here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def require_decoder(model: Any, name: str) -> None:
    """Refuse a model that cannot predict what comes next.

    Raises:
        ValueError: it reads in both directions, or images.
    """
    kind = model if isinstance(model, type) else type(model)
    if not hasattr(kind, "generate"):
        raise ValueError(f"{name} is a {kind.__name__}, which does not predict what comes next: choose a decoder")


def in_bytes(number: float) -> str:
    """A size in a unit that suits it."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number:,.0f} bytes"


def read_text(source: str) -> str:
    """The text of a file, or of standard input if the source is "-", with its line ends as they are.

    Raises:
        ValueError: it cannot be read, or is not UTF-8.
    """
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return content.decode()
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text: {error}") from error
