"""Markdown blocks of a walk: modules' source beside its explanation, with the shapes of a real pass.

    //// walk | allformers.models.gpt2.gpt2

    /// step | Queries, keys and values
        code: CausalSelfAttention.forward: queries .. queries, keys, values
    Prose, in Markdown.
    ///

    ////

A step names the code that it explains by symbol and by how statements begin, never by line number. A walk may go
through several modules, with commas between them: a symbol is then looked for in each. Every line of every class and
function of every module belongs to exactly one step: a leftover, an overlap, a vanished target or a symbol that two
modules have fails the build. In the margin stand the tensors that each statement makes, recorded from a pass through
the model, with the size of each axis; in patterns, annotations and prose each axis has a colour and a line of its own.
"""

import base64
import html
import io
import itertools
import keyword
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

import torch
import yaml
from markdown import Markdown
from matplotlib import colormaps
from PIL import Image
from pymdownx.blocks.block import Block, type_string
from torch import Tensor

from allformers.inspection.figures import COLOUR_MAP
from allformers.nn.axes import AXES
from allformers.practice.course import entries
from docs.engine.facts import shown, sizes_html
from docs.engine.presets import presets
from docs.engine.record import PROMPT, Made, Module, Unit, WalkError, is_pattern, recorded

CELLS, LEVELS = 64, 32
"""How much of an axis a picture in the margin shows, and in how many shades: it should stay small."""


def axis_html(name: str) -> str:
    """Return the HTML of an axis, to be coloured and found."""
    return f'<span class="ax" data-ax="{name}">{name}</span>' if name in AXES else html.escape(name)


def pattern_html(text: str) -> str:
    """Return the HTML of a pattern or an annotation, each axis marked."""
    return "".join(axis_html(word) if word in AXES else html.escape(word) for word in re.split(r"(\w+)", text))


def code_html(source: str) -> list[str]:
    """Return the HTML of each line of Python, highlighted, with axes marked in patterns and annotations."""
    rows = source.splitlines(keepends=True)
    marks: list[tuple[int, int, int, int, str]] = []
    docstrings = _docstring_lines(source)
    for token in _tokens(source):
        kind = ""
        if token.type == tokenize.COMMENT:
            kind = "c"
        elif token.type == tokenize.STRING:
            kind = "d" if token.start[0] in docstrings else "p" if is_pattern(token.string[1:-1]) else "s"
        elif token.type == tokenize.NUMBER:
            kind = "m"
        elif token.type == tokenize.NAME and keyword.iskeyword(token.string):
            kind = "k"
        if kind:
            marks.append((*token.start, *token.end, kind))
    output: list[str] = []
    for number, row in enumerate(rows, 1):
        done, pieces = 0, []
        for top, left, bottom, right, kind in marks:
            if top <= number <= bottom:
                start, stop = (left if number == top else 0), (right if number == bottom else len(row.rstrip("\n")))
                pieces.append(html.escape(row[done:start]))
                body = row[start:stop]
                shown = pattern_html(body) if kind == "p" else html.escape(body)
                pieces.append(f'<span class="{kind}">{shown}</span>')
                done = stop
        pieces.append(html.escape(row[done:].rstrip("\n")))
        output.append("".join(pieces))
    return output


def _tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    """Return the tokens of a piece of a module, which may begin and end inside a block."""
    try:
        yield from tokenize.generate_tokens(io.StringIO(source).readline)
    except (tokenize.TokenError, IndentationError):
        return


def _docstring_lines(source: str) -> set[int]:
    return {n for n, line in enumerate(source.splitlines(), 1) if line.lstrip().startswith('"""')}


def shape_html(made: Made) -> str:
    """Return the HTML of a tensor's axes and sizes and, on demand, of its values in the bundled model's example."""
    parts = []
    for place, name in enumerate(made.axes):
        label = f"{pattern_html(name)} " if re.search("[a-z]", name) else ""
        size = sizes_html({preset: f"{shape[place]:,}" for preset, shape in made.shapes.items()})
        parts.append(f'<span class="walk-axis">{label}{size}</span>')
    listed = "".join(parts) or "<span>a number</span>"
    return f'<div class="walk-shape"><code>{html.escape(made.name)}</code>{listed}{values_html(made)}</div>'


def values_html(made: Made) -> str:
    """Return the HTML of a tensor's statistics, and a picture of its last two axes."""
    values = made.values
    if values is None or values.numel() < 2 or not (values.is_floating_point() or values.dtype is torch.bool):
        return ""
    if values.dtype is torch.bool:
        lines = f"True in {int(values.sum()):,} of {values.numel():,} places"
        return _values_box(made, lines, _picture_html(made.name, values.float(), 0.0, 1.0))
    shown = values[values > torch.finfo(values.dtype).min].double()
    shown = shown[shown.isfinite()]
    lines = f"mean {shown.mean():.3g}, spread {shown.std():.3g}, from {shown.min():.3g} to {shown.max():.3g}"
    hidden = values.numel() - shown.numel()
    lines += f", leaving out {hidden:,} of {values.numel():,} that are masked" if hidden else ""
    picture = _picture_html(made.name, values, float(shown.min()), float(shown.max())) if values.ndim >= 2 else ""
    return _values_box(made, lines, picture)


def _values_box(made: Made, lines: str, picture: str) -> str:
    assert made.values is not None
    shape = " x ".join(str(size) for size in made.values.shape)
    return (
        f'<details class="walk-values"><summary aria-label="numbers in {html.escape(made.name)}">numbers</summary>'
        f"<p>In the bundled model, reading “{html.escape(PROMPT)}”: {shape}; {lines}</p>{picture}</details>"
    )


def _picture_html(name: str, values: Tensor, lowest: float, highest: float) -> str:
    """Return the last two axes of a tensor as a picture, from low (dark) to high (light): a cell for each number."""
    grid = values.reshape(-1, *values.shape[-2:])[0][:, :CELLS]
    level = ((grid.clamp(min=lowest) - lowest) / max(highest - lowest, 1e-12) * (LEVELS - 1)).round()
    image = Image.fromarray(level.to(torch.uint8).numpy())
    image.putpalette([round(255 * part) for n in range(LEVELS) for part in colormaps[COLOUR_MAP](n / (LEVELS - 1))[:3]])
    drawn = io.BytesIO()
    image.save(drawn, "png", bits=5, optimize=True)
    rows, columns = grid.shape
    which = "the first " if grid.numel() < values.numel() else ""
    return (
        f'<img src="data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}" '
        f'width="{4 * columns}" height="{4 * rows}" alt="{which}{rows} by {columns} values of {html.escape(name)}">'
    )


class State:
    """The state of a page while it is read: the modules that it walks, and the lines of each explained so far."""

    def __init__(self) -> None:
        self.modules: list[Module] = []
        self.explained: dict[tuple[str, int], str] = {}
        self.ids: set[str] = set()


class Walk(Block):
    """`//// walk | module, module`: holds the steps, and checks at its end that nothing was left out."""

    NAME = "walk"
    ARGUMENT = True

    def on_create(self, parent: ElementTree.Element) -> ElementTree.Element:
        """Open the walk, with the legend of axes and the switch of sizes."""
        state = _state(self.md)
        state.modules = [Module(name.strip()) for name in self.argument.split(",")]
        state.explained.clear()
        walk = ElementTree.SubElement(parent, "div", {"class": "walk"})
        if any(module.axes() for module in state.modules):
            legend = ElementTree.SubElement(walk, "div", {"class": "walk-legend-place"})
            legend.text = self.md.htmlStash.store(legend_html(state.modules))
        return walk

    def on_end(self, block: ElementTree.Element) -> None:
        """Raise an error if a statement is explained by no step."""
        state = _state(self.md)
        for module in state.modules:
            left = unexplained(module, state.explained)
            if left:
                texts = [f"{unit.symbol}: {module.text(unit)[:60]}" for unit in left]
                raise WalkError(f"no step explains {len(left)} parts of {module.name}: {'; '.join(texts)}")


class Step(Block):
    """`/// step | title`, with `code:` what it explains: prose on one side, code and shapes on the other."""

    NAME = "step"
    ARGUMENT = True
    OPTIONS = {"code": ["", type_string]}  # noqa: RUF012  (as the base class has it)

    def on_create(self, parent: ElementTree.Element) -> ElementTree.Element:
        """Set up both sides; prose goes into the first."""
        state = _state(self.md)
        if not state.modules:
            raise WalkError(f"the step {self.argument!r} stands outside a walk")
        targets = targets_of(self.options["code"])
        symbol, _, part = (targets[0] if targets else self.argument).partition(":")
        words = re.findall(r"\w+", part)
        name = f"{symbol}.{words[0]}" if words and words[0] != "head" else symbol
        if name in state.ids:
            raise WalkError(f"two steps begin with {name}: let one begin with another statement")
        state.ids.add(name)
        step = ElementTree.SubElement(parent, "section", {"class": "walk-step", "tabindex": "-1"})
        ElementTree.SubElement(step, "h3", {"id": name}).text = self.argument
        prose = ElementTree.SubElement(step, "div", {"class": "walk-prose"})
        code = ElementTree.SubElement(step, "div", {"class": "walk-code"})
        found = [self._units(state, target) for target in targets]
        groups = [
            (module, [unit for _, units in same for unit in units])
            for module, same in itertools.groupby(found, key=lambda pair: pair[0])
        ]
        shown = "".join(units_html(module, units) for module, units in groups)
        code.text = self.md.htmlStash.store(shown + place_html(groups))
        self.prose, self.name = prose, name
        return step

    def on_add(self, block: ElementTree.Element) -> ElementTree.Element:
        """Return the element for prose."""
        return self.prose

    def on_end(self, block: ElementTree.Element) -> None:
        """Add links to the exercises; the parser may end a block more than once."""
        if self.prose.find("p[@class='walk-practice']") is not None:
            return
        names = [module.name for module in _state(self.md).modules]
        for entry, exercise in ((entry, entry.load()) for entry in entries()):
            is_here = any(exercise.part_of.startswith(f"{name}.") for name in names)
            if is_here and exercise.page.partition("#")[2] == self.name:
                place = ElementTree.SubElement(self.prose, "p", {"class": "walk-practice"})
                place.text = "Write it yourself: " if exercise.bug is None else "Find what is wrong with it: "
                link = ElementTree.SubElement(place, "a", {"href": f"practice/{entry.name}.md"})
                link.text = entry.title

    def _units(self, state: State, target: str) -> tuple[Module, list[Unit]]:
        try:
            module = module_of(state.modules, target)
            units = module.find(target)
        except WalkError as error:
            raise WalkError(f"step {self.argument!r}: {error}") from error
        for unit in units:
            if other := state.explained.get((module.name, unit.first)):
                raise WalkError(f"{unit.symbol}: {module.text(unit)[:60]} is in two steps: {other}, {self.argument}")
            state.explained[module.name, unit.first] = self.argument
        return module, units


def faults(page: str) -> list[str]:
    """What is wrong with the walks of a page in Markdown, found without building it; empty if nothing is.

    Statements that no step explains or that two explain, and steps whose code is not there.
    """
    found: list[str] = []
    page = re.sub(r"^(`{3,}).*?^\1$", "", page, flags=re.MULTILINE | re.DOTALL)  # a walk in a fence is an example
    for names, body in re.findall(r"^/{4,} walk \| ([^\n]+)$(.*?)^/{4,}$", page, re.MULTILINE | re.DOTALL):
        modules = [Module(name.strip()) for name in names.split(",")]
        explained: dict[tuple[str, int], str] = {}
        for title, options in re.findall(r"^/// step \| (.+)\n((?: {4}.*\n)*)", body, re.MULTILINE):
            for target in targets_of(str((yaml.safe_load(options) or {}).get("code", ""))):
                try:
                    module = module_of(modules, target)
                    units = module.find(target)
                except WalkError as error:
                    found.append(f"step {title!r}: {error}")
                    continue
                for unit in units:
                    other = explained.setdefault((module.name, unit.first), title)
                    if other != title:
                        found.append(f"{module.name}, line {unit.first} is in two steps: {other!r} and {title!r}")
        found += [
            f"no step explains {module.name}, line {unit.first}, in {unit.symbol}: {module.text(unit)[:60]}"
            for module in modules
            for unit in unexplained(module, explained)
        ]
    return found


def targets_of(code: str) -> list[str]:
    """Return the targets in a step's `code:`, which semicolons separate."""
    return [target.strip() for target in code.split(";") if target.strip()]


def unexplained(module: Module, explained: Mapping[tuple[str, int], str]) -> list[Unit]:
    """Return the parts of a module that no step explains."""
    return [unit for unit in module.units if (module.name, unit.first) not in explained]


def module_of(modules: Sequence[Module], target: str) -> Module:
    """Return the module, of several, that has the symbol which a target begins with.

    Raises:
        WalkError: none has it, or several have.
    """
    symbol = target.partition(":")[0].strip()
    having = [module for module in modules if any(unit.symbol == symbol for unit in module.units)]
    if len(having) != 1:
        names = ", ".join(module.name for module in having or modules)
        raise WalkError(f"{names} {'all have' if having else 'has no' if len(modules) == 1 else 'have no'} {symbol}")
    return having[0]


def units_html(module: Module, units: list[Unit]) -> str:
    """Return the HTML of code, with the tensors that each piece makes below it. Pieces that make none stay together."""
    made = recorded(module.name)
    blocks: list[str] = []
    piece: list[Unit] = []
    for number, unit in enumerate(units):
        piece.append(unit)
        shapes = [
            shape_html(one)
            for (symbol, line), found in made.items()
            if symbol == unit.symbol and unit.first <= line <= unit.last
            for one in found
        ]
        following = units[number + 1] if number + 1 < len(units) else None
        if shapes or following is None or not _adjacent(module, unit, following):
            blocks.append(_piece_html(module, piece, shapes))
            piece = []
    return "".join(blocks)


def place_html(groups: Sequence[tuple[Module, list[Unit]]]) -> str:
    """Return the HTML of the code's file and lines, with a link to each whole file."""
    by_module: dict[str, tuple[Module, list[Unit]]] = {}
    for module, units in groups:
        by_module.setdefault(module.name, (module, []))[1].extend(units)
    places = "; lines ".join(_lines_html(module, units) for module, units in by_module.values())
    return f'<p class="walk-place">Lines {places}</p>'


def _lines_html(module: Module, units: list[Unit]) -> str:
    ranges: list[list[int]] = []
    for unit in sorted(units, key=lambda unit: unit.first):
        if ranges and unit.first - ranges[-1][1] <= 3:
            ranges[-1][1] = unit.last
        else:
            ranges.append([unit.first, unit.last])
    lines = ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in ranges)
    target = f"generated/source/{module.name}.txt"
    return f'{lines} of <a href="{target}">{module.path.name}</a>'


def _adjacent(module: Module, unit: Unit, following: Unit) -> bool:
    """True if only empty lines stand between two units."""
    between = module.lines[unit.last : following.first - 1]
    return following.first > unit.last and not any(line.strip() for line in between)


def _piece_html(module: Module, piece: list[Unit], shapes: list[str]) -> str:
    first, last = piece[0].first, piece[-1].last
    lines = module.lines[first - 1 : last]
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    code = "".join(_line_html(row, indent) for row in code_html("\n".join(lines) + "\n"))
    margin = f'<div class="walk-shapes">{"".join(shapes)}</div>' if shapes else ""
    symbols = html.escape(" ".join(dict.fromkeys(unit.symbol for unit in piece)))
    label = f"code of {symbols}"
    return (
        f'<div class="walk-unit" data-module="{module.name}" data-first="{first}" data-last="{last}">'
        f'<pre tabindex="0" role="group" aria-label="{label}"><code>{code}</code></pre>{margin}</div>'
    )


def _line_html(row: str, indent: int) -> str:
    """Return the HTML of a line; indentation common to all lines stays in the text but takes little room."""
    return (
        re.sub(rf"^((?:<[^>]*>)*)( {{{indent}}})", r'\1<span class="in">\2</span>', row) + "\n"
        if indent
        else f"{row}\n"
    )


def legend_html(modules: Sequence[Module]) -> str:
    """Return the HTML of each axis with its meaning and its size, and, for a model, the choice of a size."""
    configs = {name: config for module in modules for name, config in presets(module.name).items()}
    sizes: dict[str, dict[str, str]] = {axis: {} for module in modules for axis in module.axes()}
    for preset, config in configs.items():
        known = {**config.axes, "batch": 1, **dict.fromkeys(("seq", "seq_k"), config.context_length)}
        for axis, size in known.items():
            sizes.setdefault(axis, {})[preset] = f"{size:,}"
    options = "".join(
        f'<option value="{name}"{" selected" if name == shown(configs) else ""}>{name.replace("_", " ")}</option>'
        for name in configs
    )
    choice = f'<label>Sizes of <select class="sizes">{options}</select></label>' if configs else ""
    items = "".join(
        f'<li data-axis="{axis}">{axis_button(axis)} {sizes_html(sizes[axis]) if sizes[axis] else ""} '
        f"<span>{html.escape(meaning)}</span></li>"
        for axis, meaning in AXES.items()
        if axis in sizes
    )
    return (
        f'<div class="walk-legend" role="group" aria-label="Axes">{choice}'
        f"<details open><summary>Axes</summary><ul>{items}</ul></details></div>"
    )


def axis_button(name: str) -> str:
    """Return the HTML of an axis that can be chosen with the keyboard too."""
    return f'<button type="button" class="ax" data-ax="{name}">{name}</button>'


def _state(md: Markdown) -> State:
    return md.walk_state  # type: ignore[attr-defined]
