"""Figures of activations, drawn with Matplotlib: for a light page, a dark one and print.

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
"""A palette that colour-blind readers can tell apart. Source: Okabe and Ito 2008, "Color Universal Design"."""

COLOUR_MAP = "viridis"
"""A perceptually uniform colour map, readable in grey too."""

INK = "#1b1b1f"
"""The colour of lines and letters, for white paper; in SVG it becomes the colour of the text around."""

_STYLE = "<style>svg{color:#1b1b1f}@media (prefers-color-scheme:dark){svg{color:#e4e4e7}}</style>"


@contextmanager
def drawing() -> Iterator[None]:
    """Apply Matplotlib's settings for figures here, without warnings about letters that its font lacks."""
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
    """Return an empty figure of a size in inches, in constrained layout."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: "Figure") -> str:
    """Return a figure as SVG, in the colour of the text around."""
    with drawing():
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    text = drawn.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r"(font: [^;']*)'DejaVu Sans'[^;\"]*", r"\1system-ui, sans-serif", text)


def save(figure: "Figure", path: str | Path) -> list[Path]:
    """Write a figure as `path.png` and `path.svg`; return these paths.

    Raises:
        ValueError: there is no such folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to put the figure in")
    path = path.with_suffix("") if path.suffix in {".png", ".svg"} else path
    png, svg = (path.with_name(f"{path.name}.{ending}") for ending in ("png", "svg"))
    with drawing():
        figure.savefig(png, dpi=150, facecolor="white")
    drawn = to_svg(figure)
    svg.write_text(re.sub(r"(<svg[^>]*>)", rf"\1{_STYLE}", drawn, count=1), encoding="utf-8")
    return [png, svg]


def to_html(title: str, sections: Mapping[str, tuple[str, "Figure"]]) -> str:
    """Return a self-contained HTML page: figures with a heading and a sentence each, light or dark as the reader's are.

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
    """Return a token's text as a label: white space made visible, bytes that are no text as numbers.

    Models may have more rows than their tokenizer has tokens; an id without a token is (none).
    """
    if not tokenizer.is_token(token_id):
        return "(none)"
    text = tokenizer.token_bytes(token_id).decode(errors="backslashreplace")
    shown = text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    shown = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in shown)
    return shown.replace(" ", "·")


def attention_grid(activations: Activations, labels: Sequence[str]) -> "Figure":
    """Draw the attention weights of all heads, of the first text captured: a row for each layer.

    In each map a row is a query's position, and a column a key's.
    """
    layers = [weights[0].float().cpu() for weights in activations.by_layer("attention.weights")]
    heads, side = len(layers[0]), len(labels)
    size = 0.95 if heads > 6 else 1.6
    with drawing():
        figure = new_figure(heads * size + 0.6, len(layers) * size + 0.5)
        for layer, head, axes in _head_grid(figure, len(layers), heads):
            _heatmap(axes, layers[layer][head])
            if head == 0 and side <= 12 and heads <= 6:
                axes.set_yticks(range(side), labels, fontsize=min(7, 70 / side))
    return figure


def _head_grid(figure: "Figure", layers: int, heads: int) -> "Iterator[tuple[int, int, Axes]]":
    """Yield the plots of a grid, a row for each layer and a column for each head, titled and without ticks."""
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
    """Draw one head's attention weights, large: a row holds a query's weights, which add up to one."""
    weights = _head_weights(activations, layer, head)
    count = len(labels)
    side = min(10.5, max(3.5, 0.2 * count + 1.5))
    with drawing():
        figure = new_figure(side + 1, side)
        axes = figure.add_subplot()
        image = _heatmap(axes, weights)
        every = max(1, math.ceil(count / 80))
        positions = range(0, count, every)
        size = 8 if count <= 60 else 6
        axes.set_yticks(positions, [labels[position] for position in positions], fontsize=size)
        _label_x_ticks(axes, positions, [labels[position] for position in positions], size)
        axes.set_title(f"layer {layer}, head {head}")
        axes.set_ylabel("query")
        axes.set_xlabel("key")
        figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
    return figure


def attention_arcs(
    activations: Activations, labels: Sequence[str], layer: int, head: int, threshold: float = 0.05
) -> "Figure":
    """Draw one head's attention as arcs from each query back to its keys, the thicker the larger the weight.

    Weights below `threshold` are left out, and so is a token's weight on itself.
    """
    from matplotlib.patches import Arc

    weights = _head_weights(activations, layer, head)
    count = len(labels)
    with drawing():
        figure = new_figure(max(5.0, 0.22 * count), 4)
        axes = figure.add_subplot()
        widest = 1
        for query in range(count):
            for key in range(query):
                weight = float(weights[query, key])
                if weight >= threshold:
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
        _label_x_ticks(axes, range(count), labels, 8 if count <= 60 else 6.5)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(f"layer {layer}, head {head}; in orange what goes to the first token")
    return figure


def head_entropy(activations: Activations) -> "Figure":
    """Draw the entropy of each head's attention, in bits, averaged over positions."""
    rows = [
        entropy(weights[0].float().cpu()).mean(-1).tolist() for weights in activations.by_layer("attention.weights")
    ]
    with drawing():
        figure = new_figure(max(4.0, 0.55 * len(rows[0]) + 2), max(2.5, 0.42 * len(rows) + 1.2))
        axes = figure.add_subplot()
        image = axes.imshow(rows, cmap=COLOUR_MAP, vmin=0, aspect="auto")
        _write_cells(axes, rows, [[f"{bits:.1f}" for bits in row] for row in rows], max(map(max, rows)))
        axes.set_xticks(range(len(rows[0])))
        axes.set_yticks(range(len(rows)))
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        figure.colorbar(image, ax=axes, label="bits")
    return figure


def stream_norms(activations: Activations, first: str = "first token") -> "Figure":
    """Draw the norms of the residual stream as each block receives it, and after the last one."""
    stream = [*activations.by_layer("x"), activations.by_layer("")[-1]]
    norms = [x[0].float().norm(dim=-1).cpu() for x in stream]
    with drawing():
        figure = new_figure(7, 3.6)
        axes = figure.add_subplot()
        blocks = range(len(norms))
        axes.plot(blocks, [float(norm[0]) for norm in norms], color=COLOURS[1], marker="o", markersize=4, label=first)
        if len(norms[0]) > 1:
            rest = [norm[1:] for norm in norms]
            axes.plot(
                blocks,
                [float(r.mean()) for r in rest],
                color=COLOURS[0],
                marker="o",
                markersize=4,
                label="others, mean",
            )
            low, high = [float(r.min()) for r in rest], [float(r.max()) for r in rest]
            axes.fill_between(
                blocks, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="others, from least to most"
            )
        axes.set_xticks(blocks, [*map(str, blocks[:-1]), "end"])
        if max(float(norm.max()) for norm in norms) > 4 * min(float(norm.min()) for norm in norms):
            axes.set_yscale("log")
            _use_round_ticks(axes)
        style_axes(axes, "block that receives it", "norm of the vector")
        axes.legend()
    return figure


def next_tokens(
    logits: "Tensor", labels: Sequence[str], tokenizer: "Tokenizer", top: int = 6, ylabel: str = "after"
) -> "Figure":
    """Draw the likeliest tokens after each position, or at it, each with its probability.

    Args:
        logits: axes `seq vocab`.
        labels: of the tokens at those positions.
        tokenizer: to name the tokens that may come.
        top: how many of them.
        ylabel: how the positions relate to the tokens: after, or in place of.
    """
    return top_predictions(logits, labels, lambda token: cell_label(tokenizer, token), top, ylabel)


def top_predictions(
    logits: "Tensor", rows: Sequence[str], name: Callable[[int], str], top: int, ylabel: str
) -> "Figure":
    """Draw the likeliest classes of each row of logits, with their probabilities."""
    found = logits.float().cpu().softmax(-1).topk(min(top, logits.shape[-1]), dim=-1)
    texts = [
        [f"{name(int(answer))}  {p:.0%}" for answer, p in zip(*row, strict=True)]
        for row in zip(found.indices, found.values, strict=True)
    ]
    columns = ["likeliest", *(f"{rank}." for rank in range(2, len(texts[0]) + 1))]
    return table(found.values.tolist(), texts, rows, columns, ylabel)


def patches(image: "Tensor", patch_size: int) -> "Figure":
    """Draw an image, axes `channels image_height image_width`, with the borders of its patches."""
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
        for pixels, set_ticks in zip(image.shape[1:], (axes.set_yticks, axes.set_xticks), strict=True):
            edges = [edge - 0.5 for edge in range(0, pixels + 1, patch_size)]
            set_ticks(edges, [""] * len(edges))
        axes.grid(color=INK, linewidth=0.6)
        axes.tick_params(length=0)
    return figure


def attention_to_patches(activations: Activations, rows: int) -> "Figure":
    """Draw the class token's attention weights on each patch, in every head of every layer."""
    from einops import rearrange
    from matplotlib.colors import PowerNorm

    layers = [
        rearrange(weights[0, :, 0, 1:].float().cpu(), "heads (rows columns) -> heads rows columns", rows=rows)
        for weights in activations.by_layer("attention.weights")
    ]
    heads, highest = len(layers[0]), max(float(layer.max()) for layer in layers)
    with drawing():
        figure = new_figure(heads * 1.2 + 0.6, len(layers) * 1.2 + 0.5)
        for layer, head, axes in _head_grid(figure, len(layers), heads):
            norm = PowerNorm(0.5, vmin=0, vmax=highest)
            axes.imshow(layers[layer][head].numpy(), cmap=COLOUR_MAP, norm=norm, interpolation="nearest")
    return figure


def line_plot(
    lines: Mapping[str, Sequence[float]], x_labels: Sequence[str], xlabel: str, ylabel: str, *, log: bool = False
) -> "Figure":
    """Draw named lines over labelled positions, such as a divergence at each token."""
    with drawing():
        figure = new_figure(max(6.0, min(28.0, 0.2 * len(x_labels) + 1.5)), 3.6)
        axes = figure.add_subplot()
        _draw_lines(axes, lines, range(len(x_labels)), (False, log), 3 if len(x_labels) <= 60 else 0)
        if any(x_labels):
            _label_x_ticks(axes, range(len(x_labels)), x_labels, 8 if len(x_labels) <= 60 else 6.5)
        style_axes(axes, xlabel, ylabel)
    return figure


def line_plots(
    plots: Mapping[str, Mapping[str, Sequence[float]]], x: Sequence[float], xlabel: str, log: tuple[bool, bool]
) -> "Figure":
    """Draw several plots of named lines over the same x; `log` says whether x and y are logarithmic."""
    return subplots(*((title, lines, x, xlabel) for title, lines in plots.items()), log=log)


def subplots(
    *plots: tuple[str, Mapping[str, Sequence[float]], Sequence[float], str], log: tuple[bool, bool]
) -> "Figure":
    """Draw plots beside each other, each given as its title, named lines, x and the label of x."""
    with drawing():
        from matplotlib.ticker import NullLocator

        figure = new_figure(max(6.0, 4.6 * len(plots)), 3.6)
        grid = figure.subplots(1, len(plots), squeeze=False)[0]
        for axes, (title, lines, x, xlabel) in zip(grid, plots, strict=True):
            _draw_lines(axes, lines, x, log, 3)
            axes.set_title(title)
            if len(x) <= 10:
                axes.set_xticks(x, [f"{value:g}" for value in x])
                axes.xaxis.set_minor_locator(NullLocator())
            style_axes(axes, xlabel, "")
    return figure


def bar_plots(groups: Mapping[str, Sequence[float]], x_labels: Sequence[str], ylabel: str) -> "Figure":
    """Draw named groups of bars, a plot for each, over the same labels."""
    with drawing():
        figure = new_figure(max(4.5, 0.3 * len(x_labels) + 1.5), 1.3 * len(groups) + 1.2)
        grid = figure.subplots(len(groups), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for count, (axes, (name, values)) in enumerate(zip(grid, groups.items(), strict=True)):
            axes.bar(range(len(values)), values, color=COLOURS[count % len(COLOURS)], width=0.8)
            axes.set_title(name, loc="left")
            style_axes(axes, "", ylabel)
        longest = max(map(len, x_labels))
        grid[-1].set_xticks(
            range(len(x_labels)), x_labels, rotation=0 if longest <= 3 else 30, ha="center" if longest <= 3 else "right"
        )
    return figure


def heatmaps(grids: Mapping[str, "Tensor"], labels: Sequence[str], xlabel: str, ylabel: str) -> "Figure":
    """Draw named matrices as heatmaps, all on one scale, with the same labels on both sides."""
    highest = max(float(grid.max()) for grid in grids.values())
    with drawing():
        side = min(5.2, max(3.0, 0.13 * len(labels) + 1))
        figure = new_figure(side * len(grids) + 0.8, side)
        plots = figure.subplots(1, len(grids), squeeze=False)[0]
        for axes, (title, grid) in zip(plots, grids.items(), strict=True):
            axes.imshow(grid.numpy(), cmap=COLOUR_MAP, vmin=0, vmax=highest, interpolation="nearest")
            _label_x_ticks(axes, range(len(labels)), labels, 7)
            axes.set_yticks(range(len(labels)), labels, fontsize=7)
            axes.set_xlabel(xlabel)
            axes.set_title(title)
        plots[0].set_ylabel(ylabel)
    return figure


def _draw_lines(
    axes: "Axes", lines: Mapping[str, Sequence[float]], x: Sequence[float], log: tuple[bool, bool], marker: float
) -> None:
    for count, (name, values) in enumerate(lines.items()):
        colour = COLOURS[count % len(COLOURS)]
        axes.plot(x, values, color=colour, marker="o", markersize=marker, label=name)
    log_x, log_y = log
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
        _use_round_ticks(axes)
    else:
        axes.set_ylim(bottom=0)
    if len(lines) > 1:
        axes.legend()


def _use_round_ticks(axes: "Axes") -> None:
    """Label a logarithmic scale at round numbers only, and without formulas."""

    def name(number: float, _: float) -> str:
        return f"{number:g}" if f"{number:.0e}"[0] in "125" else ""

    axes.yaxis.set_major_formatter(name)
    axes.yaxis.set_minor_formatter(name)


def _head_weights(activations: Activations, layer: int, head: int) -> "Tensor":
    """Return one head's weights, axes `seq seq_k`.

    Raises:
        ValueError: there is no such layer or head.
    """
    layers = activations.by_layer("attention.weights")
    heads = layers[0].shape[1]
    if not (0 <= layer < len(layers) and 0 <= head < heads):
        raise ValueError(f"there is no head {head} in layer {layer}: there are {len(layers)} layers of {heads} heads")
    return layers[layer][0, head].float().cpu()


def _heatmap(axes: "Axes", weights: "Tensor") -> Any:
    """Draw attention weights as a heatmap; later keys, which a causal mask hides, stay blank."""
    shown = weights.clone()
    later = shown.new_ones(shown.shape).triu(1 + shown.shape[1] - shown.shape[0]).bool()
    if not shown[later].any():
        shown[later] = math.nan
    from matplotlib.colors import PowerNorm

    # The root of a weight, so that among 200 positions small ones can be told apart.
    return axes.imshow(shown.numpy(), cmap=COLOUR_MAP, norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")


def _label_x_ticks(axes: "Axes", positions: Sequence[int], labels: Sequence[str], size: float) -> None:
    """Label positions along the bottom; labels longer than a letter are turned."""
    rotation = 0 if max(map(len, labels)) <= 1 else 90
    axes.set_xticks(positions, labels, fontsize=size, rotation=rotation)


def cell_label(tokenizer: "Tokenizer", token_id: int) -> str:
    """Return a token's label for a cell."""
    return shorten(label(tokenizer, token_id))


def shorten(text: str) -> str:
    """Shorten a text so that it fits into a cell."""
    return text if len(text) <= 12 else text[:11] + "…"


def table(
    shades: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    ylabel: str,
) -> "Figure":
    """Draw a table of texts whose cells are shaded by a probability: a row for each position."""
    with drawing():
        figure = new_figure(1.15 * len(columns) + 1.2, 0.24 * len(rows) + 0.7)
        axes = figure.add_subplot()
        axes.imshow(shades, cmap=COLOUR_MAP, vmin=0, vmax=1, aspect="auto")
        _write_cells(axes, shades, texts, 1.0)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_ylabel(ylabel)
        axes.spines[:].set_visible(False)
    return figure


def _write_cells(
    axes: "Axes", shades: Sequence[Sequence[float]], texts: Sequence[Sequence[str]], highest: float
) -> None:
    for row, (values, cells) in enumerate(zip(shades, texts, strict=True)):
        for column, (value, text) in enumerate(zip(values, cells, strict=True)):
            colour = "#000000" if value > 0.6 * highest else "#ffffff"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)


def style_axes(axes: "Axes", xlabel: str, ylabel: str) -> None:
    """Label a plot's axes, and leave it open at the top and the right."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
