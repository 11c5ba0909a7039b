"""Drawing, with Matplotlib: figures that read on a light page, on a dark one and in print.

Lines and letters are drawn in one ink. In SVG, ink is whatever colour the text around has, or dark on light and light
on dark where there is none; in PNG it is dark on white.
"""

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from allformers.inspection import Activations
from allformers.inspection.compare import entropy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from allformers.inputs.tokenizers import Tokenizer


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by colour-blind readers too. Source: Okabe and Ito 2008, "Color Universal Design"."""

HEAT = "viridis"
"""From few to many: even to the eye, and readable in grey."""

INK = "#1b1b1f"
"""Dark enough for white paper; in SVG it becomes the colour of the text around."""

_STYLE = "<style>svg{color:#1b1b1f}@media (prefers-color-scheme:dark){svg{color:#e4e4e7}}</style>"


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's settings for figures here; a text with a letter that its font lacks is no reason to complain."""
    from matplotlib import rc_context

    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    settings: dict[str, Any] = {
        **dict.fromkeys(names, INK),
        "svg.hashsalt": "allformers",  # the same figure gives the same file
        "svg.fonttype": "none",  # text stays text
        "text.parse_math": False,  # and a dollar sign a dollar sign
        "font.size": 9,
        "axes.titlesize": 10,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "legend.facecolor": "none",
        "legend.edgecolor": "none",
    }
    with rc_context(cast(Any, settings)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, its size in inches, whose parts make room for one another."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: "Figure") -> str:
    """A figure as SVG, in the colour of the text around."""
    with drawing():
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    text = drawn.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r"(font: [^;']*)'DejaVu Sans'[^;\"]*", r"\1system-ui, sans-serif", text)


def save(figure: "Figure", place: str | Path) -> list[Path]:
    """Write a figure as `place.png` and `place.svg`; where they are.

    Raises:
        ValueError: the folder is not there.
    """
    place = Path(place)
    if not place.parent.is_dir():
        raise ValueError(f"there is no folder {place.parent} to put the figure in")
    place = place.with_suffix("") if place.suffix in {".png", ".svg"} else place
    png, svg = (place.with_name(f"{place.name}.{ending}") for ending in ("png", "svg"))
    with drawing():
        figure.savefig(png, dpi=150, facecolor="white")
    drawn = to_svg(figure)
    svg.write_text(re.sub(r"(<svg[^>]*>)", rf"\1{_STYLE}", drawn, count=1), encoding="utf-8")
    return [png, svg]


def to_html(title: str, sections: Mapping[str, tuple[str, "Figure"]]) -> str:
    """One page that needs nothing else: figures with a heading and a sentence each, light or dark as the reader's are.

    Args:
        title: the page's heading.
        sections: by heading, a text and a figure.
    """
    parts = [
        f'<section id="s{number}"><h2>{html.escape(heading)}</h2><p>{html.escape(text)}</p>'
        f'<div class="figure">{to_svg(figure)}</div></section>'
        for number, (heading, (text, figure)) in enumerate(sections.items())
    ]
    links = "".join(f'<a href="#s{number}">{html.escape(heading)}</a>' for number, heading in enumerate(sections))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>"
        ":root{color-scheme:light dark}"
        "body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;padding:1.5rem;max-width:76rem;"
        "color:#1b1b1f;background:#fff}"
        "@media (prefers-color-scheme:dark){body{color:#e4e4e7;background:#18181b}}"
        "nav{display:flex;flex-wrap:wrap;gap:.25rem 1rem}a{color:inherit}h1,h2{line-height:1.2}"
        "h1{overflow-wrap:anywhere}section{margin-top:2.5rem}p{max-width:44rem}"
        ".figure{overflow-x:auto}.figure svg{display:block}"
        f"</style></head><body><h1>{html.escape(title)}</h1><nav>{links}</nav>{''.join(parts)}</body></html>\n"
    )


def label(tokenizer: "Tokenizer", token_id: int) -> str:
    """A token as a label: white space made visible, bytes that are no text by their number."""
    text = tokenizer.token_bytes(token_id).decode(errors="backslashreplace")
    shown = text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    shown = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in shown)
    return shown.replace(" ", "·")


def attention_grid(activations: Activations, labels: Sequence[str]) -> "Figure":
    """The attention weights of all heads of all layers, of the first text captured: a row for each layer.

    In each map a row is a query's position, and a column a key's.
    """
    layers = [weights[0].float().cpu() for weights in activations.by_layer("attention.weights")]
    heads, side = len(layers[0]), len(labels)
    size = 0.95 if heads > 6 else 1.6
    with drawing():
        figure = new_figure(heads * size + 0.6, len(layers) * size + 0.5)
        for layer, head, axes in _grid_of_heads(figure, len(layers), heads):
            _map(axes, layers[layer][head])
            if head == 0 and side <= 12 and heads <= 6:
                axes.set_yticks(range(side), labels, fontsize=min(7, 70 / side))
    return figure


def _grid_of_heads(figure: "Figure", layers: int, heads: int) -> "Iterator[tuple[int, int, Axes]]":
    """The plots of a grid with a row for each layer and a column for each head, with their titles and without ticks."""
    grid = figure.subplots(layers, heads, squeeze=False)
    for layer, row in enumerate(grid):
        for head, axes in enumerate(row):
            axes.set_xticks([])
            axes.set_yticks([])
            if layer == 0:
                axes.set_title(f"head {head}")
            if head == 0:
                axes.set_ylabel(f"layer {layer}")
            yield layer, head, axes


def attention_head(activations: Activations, labels: Sequence[str], layer: int, head: int) -> "Figure":
    """One head's attention weights, large: a row says how a query shares them out, and adds up to one."""
    weights = _head(activations, layer, head)
    count = len(labels)
    side = min(10.5, max(3.5, 0.2 * count + 1.5))
    with drawing():
        figure = new_figure(side + 1, side)
        axes = figure.add_subplot()
        image = _map(axes, weights)
        every = max(1, math.ceil(count / 80))
        places = range(0, count, every)
        size = 8 if count <= 60 else 6
        axes.set_yticks(places, [labels[place] for place in places], fontsize=size)
        _label_below(axes, places, [labels[place] for place in places], size)
        axes.set_title(f"layer {layer}, head {head}")
        axes.set_ylabel("query")
        axes.set_xlabel("key")
        figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
    return figure


def attention_arcs(
    activations: Activations, labels: Sequence[str], layer: int, head: int, least: float = 0.05
) -> "Figure":
    """One head's attention as arcs from each query back to its keys, the thicker the larger the weight.

    Weights below `least` are left out, and so is what a token gives to itself.
    """
    from matplotlib.patches import Arc

    weights = _head(activations, layer, head)
    count = len(labels)
    with drawing():
        figure = new_figure(max(5.0, 0.22 * count), 4)
        axes = figure.add_subplot()
        widest = 1
        for query in range(count):
            for key in range(query):
                weight = float(weights[query, key])
                if weight >= least:
                    widest = max(widest, query - key)
                    middle, width = (query + key) / 2, query - key
                    colour = COLOURS[0] if key else COLOURS[1]
                    height = 2 * math.sqrt(width)
                    line: dict[str, Any] = {
                        "color": colour,
                        "linewidth": 0.4 + 2.6 * weight,
                        "alpha": min(1.0, 0.25 + weight),
                    }
                    axes.add_patch(Arc((middle, 0), width, height, theta1=0, theta2=180, **line))
        axes.set_xlim(-0.7, count - 0.3)
        axes.set_ylim(0, 1.05 * math.sqrt(widest))
        axes.set_yticks([])
        _label_below(axes, range(count), labels, 8 if count <= 60 else 6.5)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(f"layer {layer}, head {head}; in orange what goes to the first token")
    return figure


def head_entropy(activations: Activations) -> "Figure":
    """Each head's entropy, in bits, on average over positions: how spread out its attention is."""
    rows = [
        entropy(weights[0].float().cpu()).mean(-1).tolist() for weights in activations.by_layer("attention.weights")
    ]
    with drawing():
        figure = new_figure(max(4.0, 0.55 * len(rows[0]) + 2), max(2.5, 0.42 * len(rows) + 1.2))
        axes = figure.add_subplot()
        image = axes.imshow(rows, cmap=HEAT, vmin=0, aspect="auto")
        _write_cells(axes, rows, [[f"{bits:.1f}" for bits in row] for row in rows], max(map(max, rows)))
        axes.set_xticks(range(len(rows[0])))
        axes.set_yticks(range(len(rows)))
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        figure.colorbar(image, ax=axes, label="bits")
    return figure


def stream_norms(activations: Activations, first: str = "first token") -> "Figure":
    """The residual stream's norms: the length of its vectors as each block receives them, and after the last one."""
    stream = [*activations.by_layer("x"), activations.by_layer("")[-1]]
    norms = [x[0].float().norm(dim=-1).cpu() for x in stream]
    with drawing():
        figure = new_figure(7, 3.6)
        axes = figure.add_subplot()
        places = range(len(norms))
        axes.plot(places, [float(norm[0]) for norm in norms], color=COLOURS[1], marker="o", markersize=4, label=first)
        if len(norms[0]) > 1:
            rest = [norm[1:] for norm in norms]
            axes.plot(
                places,
                [float(r.mean()) for r in rest],
                color=COLOURS[0],
                marker="o",
                markersize=4,
                label="others, mean",
            )
            low, high = [float(r.min()) for r in rest], [float(r.max()) for r in rest]
            axes.fill_between(
                places, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="others, from least to most"
            )
        axes.set_xticks(places, [*map(str, places[:-1]), "end"])
        if max(float(norm.max()) for norm in norms) > 4 * min(float(norm.min()) for norm in norms):
            axes.set_yscale("log")
            _round_numbers(axes)
        open_axes(axes, "block that receives it", "length of the vector")
        axes.legend()
    return figure


def next_tokens(
    logits: "Tensor", labels: Sequence[str], tokenizer: "Tokenizer", top: int = 6, of: str = "after"
) -> "Figure":
    """The likeliest next tokens after each position, or those at it, each with its probability.

    Args:
        logits: axes `seq vocab`.
        labels: of the tokens at those positions.
        tokenizer: to name the tokens that may come.
        top: how many of them.
        of: how the positions relate to the tokens.
    """
    return likeliest(logits, labels, lambda token: cell(tokenizer, token), top, of)


def likeliest(logits: "Tensor", rows: Sequence[str], name: Callable[[int], str], top: int, of: str) -> "Figure":
    """The likeliest answers of each row, with their probabilities."""
    found = logits.float().cpu().softmax(-1).topk(min(top, logits.shape[-1]), dim=-1)
    texts = [
        [f"{name(int(answer))}  {p:.0%}" for answer, p in zip(*row, strict=True)]
        for row in zip(found.indices, found.values, strict=True)
    ]
    columns = ["likeliest", *(f"{place}." for place in range(2, len(texts[0]) + 1))]
    return table(found.values.tolist(), texts, rows, columns, of)


def patches(image: "Tensor", patch_size: int) -> "Figure":
    """An image, axes `channels image_height image_width`, cut into patches."""
    from einops import rearrange

    low, high = image.min(), image.max()
    shown = rearrange(
        (image - low) / (high - low).clamp(min=1e-6),
        "channels image_height image_width -> image_height image_width channels",
    )
    with drawing():
        figure = new_figure(4, 4)
        axes = figure.add_subplot()
        axes.imshow(shown.cpu().numpy(), cmap="gray", interpolation="nearest")
        places = [place - 0.5 for place in range(0, image.shape[-1] + 1, patch_size)]
        axes.set_xticks(places, [""] * len(places))
        axes.set_yticks(places, [""] * len(places))
        axes.grid(color=INK, linewidth=0.6)
        axes.tick_params(length=0)
    return figure


def attention_to_patches(activations: Activations, rows: int) -> "Figure":
    """The class token's attention weights in every head of every layer, patch by patch."""
    from einops import rearrange
    from matplotlib.colors import PowerNorm

    layers = [
        rearrange(weights[0, :, 0, 1:].float().cpu(), "heads (rows columns) -> heads rows columns", rows=rows)
        for weights in activations.by_layer("attention.weights")
    ]
    heads, highest = len(layers[0]), max(float(layer.max()) for layer in layers)
    with drawing():
        figure = new_figure(heads * 1.2 + 0.6, len(layers) * 1.2 + 0.5)
        for layer, head, axes in _grid_of_heads(figure, len(layers), heads):
            norm = PowerNorm(0.5, vmin=0, vmax=highest)
            axes.imshow(layers[layer][head].numpy(), cmap=HEAT, norm=norm, interpolation="nearest")
    return figure


def lines_by_place(
    lines: Mapping[str, Sequence[float]], places: Sequence[str], across: str, up: str, *, log: bool = False
) -> "Figure":
    """Named lines over named places, such as a divergence at each token."""
    with drawing():
        figure = new_figure(max(6.0, min(28.0, 0.2 * len(places) + 1.5)), 3.6)
        axes = figure.add_subplot()
        _draw_lines(axes, lines, range(len(places)), (False, log), 3 if len(places) <= 60 else 0)
        if any(places):
            _label_below(axes, range(len(places)), places, 8 if len(places) <= 60 else 6.5)
        open_axes(axes, across, up)
    return figure


def side_by_side(
    plots: Mapping[str, Mapping[str, Sequence[float]]], places: Sequence[float], across: str, log: tuple[bool, bool]
) -> "Figure":
    """Several plots of named lines over the same numbers; `log` says whether across and up are logarithmic."""
    return plots_of(*((title, lines, places, across) for title, lines in plots.items()), log=log)


def plots_of(
    *plots: tuple[str, Mapping[str, Sequence[float]], Sequence[float], str], log: tuple[bool, bool]
) -> "Figure":
    """Plots beside each other: of each its title, its named lines, where they are measured, and what that is."""
    with drawing():
        from matplotlib.ticker import NullLocator

        figure = new_figure(max(6.0, 4.6 * len(plots)), 3.6)
        grid = figure.subplots(1, len(plots), squeeze=False)[0]
        for axes, (title, lines, places, across) in zip(grid, plots, strict=True):
            _draw_lines(axes, lines, places, log, 3)
            axes.set_title(title)
            if len(places) <= 10:
                axes.set_xticks(places, [f"{place:g}" for place in places])
                axes.xaxis.set_minor_locator(NullLocator())
            open_axes(axes, across, "")
    return figure


def bars(groups: Mapping[str, Sequence[float]], places: Sequence[str], up: str) -> "Figure":
    """Named groups of bars, a plot for each, over the same named places."""
    with drawing():
        figure = new_figure(max(4.5, 0.3 * len(places) + 1.5), 1.3 * len(groups) + 1.2)
        grid = figure.subplots(len(groups), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for count, (axes, (name, values)) in enumerate(zip(grid, groups.items(), strict=True)):
            axes.bar(range(len(values)), values, color=COLOURS[count % len(COLOURS)], width=0.8)
            axes.set_title(name, loc="left")
            open_axes(axes, "", up)
        longest = max(map(len, places))
        grid[-1].set_xticks(
            range(len(places)), places, rotation=0 if longest <= 3 else 30, ha="center" if longest <= 3 else "right"
        )
    return figure


def maps(grids: Mapping[str, "Tensor"], labels: Sequence[str], across: str, up: str) -> "Figure":
    """Named tables of numbers as shades, all on one scale, over the same labels on both sides."""
    highest = max(float(grid.max()) for grid in grids.values())
    with drawing():
        side = min(5.2, max(3.0, 0.13 * len(labels) + 1))
        figure = new_figure(side * len(grids) + 0.8, side)
        plots = figure.subplots(1, len(grids), squeeze=False)[0]
        for axes, (title, grid) in zip(plots, grids.items(), strict=True):
            axes.imshow(grid.numpy(), cmap=HEAT, vmin=0, vmax=highest, interpolation="nearest")
            _label_below(axes, range(len(labels)), labels, 7)
            axes.set_yticks(range(len(labels)), labels, fontsize=7)
            axes.set_xlabel(across)
            axes.set_title(title)
        plots[0].set_ylabel(up)
    return figure


def _draw_lines(
    axes: "Axes", lines: Mapping[str, Sequence[float]], places: Sequence[float], log: tuple[bool, bool], marker: float
) -> None:
    for count, (name, values) in enumerate(lines.items()):
        colour = COLOURS[count % len(COLOURS)]
        axes.plot(places, values, color=colour, marker="o", markersize=marker, label=name)
    across, up = log
    if across:
        axes.set_xscale("log")
    if up:
        axes.set_yscale("log")
        _round_numbers(axes)
    else:
        axes.set_ylim(bottom=0)
    if len(lines) > 1:
        axes.legend()


def _round_numbers(axes: "Axes") -> None:
    """Name round numbers only on a logarithmic scale, and without formulas."""

    def name(number: float, _: float) -> str:
        return f"{number:g}" if f"{number:.0e}"[0] in "125" else ""

    axes.yaxis.set_major_formatter(name)
    axes.yaxis.set_minor_formatter(name)


def _head(activations: Activations, layer: int, head: int) -> "Tensor":
    """One head's weights, axes `seq seq_k`.

    Raises:
        ValueError: there is no such layer or head.
    """
    layers = activations.by_layer("attention.weights")
    heads = layers[0].shape[1]
    if not (0 <= layer < len(layers) and 0 <= head < heads):
        raise ValueError(f"there is no head {head} in layer {layer}: there are {len(layers)} layers of {heads} heads")
    return layers[layer][0, head].float().cpu()


def _map(axes: "Axes", weights: "Tensor") -> Any:
    """Attention weights as shades; keys that no query may attend to, since they come later, stay blank."""
    shown = weights.clone()
    later = shown.new_ones(shown.shape).triu(1 + shown.shape[1] - shown.shape[0]).bool()
    if not shown[later].any():
        shown[later] = math.nan
    from matplotlib.colors import PowerNorm

    # The root of a weight, so that among 200 positions small ones can be told apart.
    return axes.imshow(shown.numpy(), cmap=HEAT, norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")


def _label_below(axes: "Axes", places: Sequence[int], labels: Sequence[str], size: float) -> None:
    """Name places along the bottom, upright if the names are short."""
    rotation = 0 if max(map(len, labels)) <= 1 else 90
    axes.set_xticks(places, labels, fontsize=size, rotation=rotation)


def cell(tokenizer: "Tokenizer", token_id: int) -> str:
    """A token's label for a cell; vocabularies may be padded with ids that are no token."""
    return short(label(tokenizer, token_id) if token_id < tokenizer.vocab_size else "(none)")


def short(text: str) -> str:
    """A text that fits into a cell."""
    return text if len(text) <= 12 else text[:11] + "…"


def table(
    shades: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    of: str,
) -> "Figure":
    """Texts in cells whose shade is a probability: a row for each position."""
    with drawing():
        figure = new_figure(1.15 * len(columns) + 1.2, 0.24 * len(rows) + 0.7)
        axes = figure.add_subplot()
        axes.imshow(shades, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
        _write_cells(axes, shades, texts, 1.0)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_ylabel(of)
        axes.spines[:].set_visible(False)
    return figure


def _write_cells(
    axes: "Axes", shades: Sequence[Sequence[float]], texts: Sequence[Sequence[str]], highest: float
) -> None:
    for row, (values, cells) in enumerate(zip(shades, texts, strict=True)):
        for column, (value, text) in enumerate(zip(values, cells, strict=True)):
            colour = "#000000" if value > 0.6 * highest else "#ffffff"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)


def open_axes(axes: "Axes", across: str, up: str) -> None:
    """Label a plot's axes, and leave it open at the top and the right."""
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
