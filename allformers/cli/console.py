"""Helpers that the commands share: options, loading, devices, formatting, output of figures."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from allformers.inputs.tokenizers import Tokenizer

messages = Console(stderr=True)
"""The console for messages: standard error, so that standard output holds only results."""

MODEL_HELP = "A folder, a name on the Hugging Face hub, or bundled."

Model = Annotated[str, typer.Option(help=MODEL_HELP)]

Out = Annotated[
    Path | None, typer.Option("--out", help="Write figures: to a folder (PNG and SVG), or to one page (name.html).")
]


class Dtype(StrEnum):
    """Floating-point dtypes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class WeightFormat(StrEnum):
    """Formats of the weights of linear layers."""

    plain = "plain"
    packed = "packed"
    int8 = "int8"
    int4 = "int4"


WEIGHTS_HELP = (
    "The format of the weights: plain; packed, which is faster and takes some seconds first and twice the memory; or "
    "quantized to int8 or int4, which takes less memory and costs some quality."
)


def prepare_for_inference(model: Any, weights: WeightFormat = WeightFormat.plain) -> None:
    """Prepare a model for inference, with the weights in one of the formats.

    Raises:
        ValueError: its weights cannot have that format.
    """
    from allformers.speed.linear import PackedLinear, prepare

    try:
        prepare(model, weights)
    except ImportError as error:
        raise ValueError(str(error)) from error
    if weights is WeightFormat.packed and not any(isinstance(layer, PackedLinear) for layer in model.modules()):
        messages.print("[dim]no layer of this model is large enough to gain from packing[/dim]")


def announce_download(model: str) -> None:
    """Print a notice before a hub download."""
    from allformers.checkpoints.hub import is_hub_name

    if is_hub_name(model):
        messages.print(f"[dim]looking for {model} on the Hugging Face hub[/dim]")


def find_presets() -> dict[str, tuple[Any, Any]]:
    """All presets by name, each with its model class and its configuration."""
    from allformers.models.registry import READING_ORDER

    return {size.name: (entry.load(), size.config) for entry in READING_ORDER for size in entry.sizes()}


def find_config(name: str) -> tuple[Any, Any]:
    """The class and the configuration of a preset, a folder or a hub name; no weights are loaded.

    Raises:
        ValueError: the name is none of these; the message lists the presets.
    """
    from allformers.checkpoints import CheckpointError
    from allformers.models.registry import load_config

    presets = find_presets()
    if name.replace("_", "-") in presets:
        return presets[name.replace("_", "-")]
    announce_download(name)
    try:
        return load_config(name)
    except CheckpointError as error:
        raise ValueError(f"{error}. The presets are: {', '.join(presets)}") from error


def find_device(name: str) -> Any:
    """The device of a name; "auto" is a GPU if there is one.

    Raises:
        ValueError: the device cannot be used here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if device.type == "meta":
        raise ValueError("device 'meta' holds shapes and no numbers, so nothing can be computed there: take 'cpu'")
    return device


def require_decoder(model: Any, name: str) -> None:
    """Refuse a model that is not a decoder.

    Raises:
        ValueError: the model is an encoder.
    """
    from allformers.generation.decoder import Decoder

    model_class = model if isinstance(model, type) else type(model)
    if not issubclass(model_class, Decoder):
        raise ValueError(f"{name} is a {model_class.__name__}, which is not a decoder: choose a model that is")


def format_bytes(number: float) -> str:
    """Format a number of bytes with a unit that suits it."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number:,.0f} bytes"


def read_text(source: str) -> str:
    """Read a text file, or standard input if the source is "-"; line ends stay as they are.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8.
    """
    if source == "-" and sys.stdin is None:
        raise ValueError("standard input is closed: give a file, or pipe a text into the command")
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return content.decode()
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text: {error}") from error


def load_model(model: str, device: str = "cpu") -> tuple[Any, "Tokenizer"]:
    """Load a model that reads text, prepare it for inference, and return it with its tokenizer."""
    import allformers

    announce_download(model)
    loaded = allformers.load(model, device=find_device(device))
    prepare_for_inference(loaded)
    return loaded, tokenizer_of(loaded, model)


def tokenizer_of(loaded: Any, model: str) -> "Tokenizer":
    """The tokenizer of a model that reads text.

    Raises:
        ValueError: the model reads images.
    """
    from allformers.inputs.tokenizers import load_tokenizer

    if loaded.dummy_input(1, 1, "cpu").is_floating_point():
        raise ValueError(f"{model} is a {type(loaded).__name__}, which reads images, not text")
    return load_tokenizer(model, loaded.config.vocab_size)


def encode(text: str, tokenizer: "Tokenizer", context_length: int) -> "Tensor":
    """Encode a prompt as token ids, axis `seq`.

    Raises:
        ValueError: the prompt is empty, or longer than the model's context.
    """
    import torch

    token_ids = tokenizer.encode(text)
    if not token_ids:
        raise ValueError("the prompt is empty")
    if len(token_ids) > context_length:
        raise ValueError(f"the prompt has {len(token_ids)} tokens; the model's context is {context_length}")
    return torch.tensor(token_ids)


def write_figures(title: str, sections: dict[str, tuple[str, "Figure"]], out: Path) -> None:
    """Write figures to a folder, or to one HTML page.

    Raises:
        ValueError: the page's folder does not exist, or the folder is a file.
    """
    from allformers.inspection import figures

    if out.suffix == ".html":
        if not out.parent.is_dir():
            raise ValueError(f"{out.name} cannot be written: there is no folder {out.parent}")
        out.write_text(figures.to_html(title, sections), encoding="utf-8")
        print(out)
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: name a folder, or a file that ends in .html")
    out.mkdir(parents=True, exist_ok=True)
    for name, (_, figure) in sections.items():
        plain = "".join(c if c.isalnum() else "-" for c in name.lower())
        for path in figures.save(figure, out / "-".join(part for part in plain.split("-") if part)):
            print(path)
