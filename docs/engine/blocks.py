"""Markdown blocks beside the walk: the model in one figure, changes that break it, the live model, formulas."""

import difflib
import html
import re
import textwrap
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import latex2mathml.converter
from markdown import Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor
from markupsafe import Markup
from pymdownx.blocks.block import Block, type_any, type_string

from allformers.nn.axes import AXES
from docs.engine import exercises, facts
from docs.engine.breaks import PROMPT, outcome
from docs.engine.facts import evaluate, sizes
from docs.engine.record import Module, WalkError
from docs.engine.walk import code_html, legend_html, pattern_html, units_html


class Figure(Block):
    """`/// figure | alternative text`, with `of:` a module and `flow:`: a model from top to bottom, parts as links.

    A row of the flow is a tensor (`tensor: x`, `axes: batch seq embed`), a part (`part: final_norm`, `step: an id`, and
    optionally the axes of its result), or `times: num_layers` with `branches:`, each a list of parts that reads the
    stream and adds to it.
    """

    NAME = "figure"
    ARGUMENT = True
    OPTIONS = {  # noqa: RUF012  (as the base class has it)
        "of": ["allformers.models.gpt2.gpt2", type_string],
        "flow": [[], type_any],
    }

    def on_create(self, parent: ElementTree.Element) -> ElementTree.Element:
        """Draw the figure."""
        figure = ElementTree.SubElement(parent, "figure", {"class": "model", "aria-label": self.argument})
        rows = "".join(self._row(row) for row in self.options["flow"])
        figure.text = self.md.htmlStash.store(f'<div class="model-flow">{rows}</div>')
        return ElementTree.SubElement(figure, "figcaption")

    def _row(self, row: Mapping[str, Any]) -> str:
        if "branches" in row:
            branches = "".join(
                f'<div class="model-branch">{"".join(self._row(part) for part in branch)}</div>'
                for branch in row["branches"]
            )
            times = f'<p class="model-times">{sizes(row["times"], self.options["of"])} times</p>'
            return f'<div class="model-times-box">{times}{branches}</div>'
        kind = "tensor" if "tensor" in row else "part"
        axes = f'<span class="model-axes">{_sized(row["axes"], self.options["of"])}</span>' if "axes" in row else ""
        name = f"<span>{html.escape(row[kind])}</span>"
        if "step" not in row:
            return f'<p class="model-{kind}">{name}{axes}</p>'
        return f'<a class="model-{kind}" href="#{html.escape(row["step"])}">{name}{axes}</a>'


def _sized(axes: str, module: str) -> str:
    """Return axes with their sizes under the page's switch; axes of positions have the size of the whole context."""
    parts = []
    for word in re.split(r"([a-z_]+)", axes):
        shown = str(pattern_html(word))
        if word in AXES and word != "batch":
            size = sizes("context_length" if word.startswith("seq") else word, module)
            shown += f"<sub>{size}</sub>"
        parts.append(shown)
    return "".join(parts)


class Excerpt(Block):
    """`/// excerpt | module`, with `code:` as in a step: a few statements beside prose, outside a walk."""

    NAME = "excerpt"
    ARGUMENT = True
    OPTIONS = {"code": ["", type_string]}  # noqa: RUF012

    def on_create(self, parent: ElementTree.Element) -> ElementTree.Element:
        """Set up both sides; prose goes into the first."""
        module = Module(self.argument.strip())
        units = [unit for target in self.options["code"].split(";") for unit in module.find(target.strip())]
        excerpt = ElementTree.SubElement(parent, "div", {"class": "excerpt"})
        prose = ElementTree.SubElement(excerpt, "div", {"class": "walk-prose"})
        code = ElementTree.SubElement(excerpt, "div", {"class": "walk-code"})
        code.text = self.md.htmlStash.store(units_html(module, units) + legend_html([module]))
        return prose


class Break(Block):
    """`/// break | title`, with `replace:` and `with:`: what really happens if the source said something else."""

    NAME = "break"
    ARGUMENT = True
    OPTIONS = {"replace": ["", type_string], "with": ["", type_string]}  # noqa: RUF012

    def on_create(self, parent: ElementTree.Element) -> ElementTree.Element:
        """Change the source, run it, and show the outcome."""
        details = ElementTree.SubElement(parent, "details", {"class": "break"})
        ElementTree.SubElement(details, "summary").text = f"Break it: {self.argument}"
        prose = ElementTree.SubElement(details, "div")
        result = ElementTree.SubElement(details, "div")
        result.text = self.md.htmlStash.store(break_html(self.options["replace"], self.options["with"]))
        return prose


def break_html(replace: str, by: str) -> str:
    """Return the HTML of a change and its outcome, beside the outcome of the unchanged model."""
    rows = [row for row in difflib.ndiff(replace.splitlines(), by.splitlines()) if not row.startswith("?")]
    changed = Markup("").join(
        Markup("<{0}>{1} {2}</{0}>").format("del" if row[0] == "-" else "ins", row[0], row[2:]) for row in rows if row
    )
    whole, broken = outcome(), outcome(replace, by)
    shown = Markup('<pre tabindex="0" role="group" aria-label="the change"><code>{}</code></pre>').format(changed)
    if broken.error:
        return shown + Markup(
            '<p>It does not run:</p><pre class="error" tabindex="0" role="group" aria-label="the error">'
            "<code>{}</code></pre>"
        ).format(broken.error)
    rise = broken.loss - whole.loss
    verdict = "hardly a difference" if abs(rise) < 0.001 else f"{rise:+.2f}"
    return shown + Markup(
        "<p>It runs, without any error. Loss on text that the bundled model has not seen: {:.4f} nats a token, "
        "<strong>now {:.4f}</strong> ({}). After “{}” it goes on:</p><dl><dt>as it is</dt><dd>“{}”</dd>"
        "<dt>now</dt><dd>“{}”{}</dd></dl>"
    ).format(
        whole.loss,
        broken.loss,
        verdict,
        PROMPT,
        whole.written.removeprefix(PROMPT),
        broken.written.removeprefix(PROMPT),
        " (� stands for bytes that are no letter)" if "�" in broken.written else "",
    )


class Difference(Block):
    """`/// difference | parent's class -> child's class`: where two sources differ, aligned statement by statement."""

    NAME = "difference"
    ARGUMENT = True

    def on_create(self, parent: ElementTree.Element) -> ElementTree.Element:
        """Align the two classes; prose stands above."""
        box = ElementTree.SubElement(parent, "div", {"class": "difference"})
        prose = ElementTree.SubElement(box, "div")
        aligned = ElementTree.SubElement(box, "div")
        before, after = (name.strip() for name in self.argument.split("->"))
        aligned.text = self.md.htmlStash.store(difference_html(before, after))
        return prose


def difference_html(before: str, after: str) -> str:
    """Return the HTML of two classes side by side, method by method; statements equal in both stand once, folded.

    Args:
        before: the ancestor, such as `allformers.models.gpt2.gpt2.Block`.
        after: what was made of it. Methods that only the ancestor has are inherited, and not shown.
    """
    old, new = (_statements(name) for name in (before, after))
    rows = [Markup('<tr><th scope="col">{}</th><th scope="col">{}</th></tr>').format(before, after)]
    for method, changed in new.items():
        original = old.get(method, [])
        for kind, a, b, c, d in difflib.SequenceMatcher(None, original, changed, autojunk=False).get_opcodes():
            sides = ["\n".join(original[a:b]), "\n".join(changed[c:d])]
            if kind == "equal":
                count = f"{b - a} statement{'s' if b - a > 1 else ''} of {method} the same"
                rows.append(
                    Markup('<tr><td colspan="2"><details><summary>{}</summary>{}</details></td></tr>').format(
                        count, _code(sides[0])
                    )
                )
            else:
                cells = Markup("").join(Markup("<td>{}</td>").format(_code(side) if side else "") for side in sides)
                rows.append(Markup('<tr class="changed">{}</tr>').format(cells))
    inherited = [method for method in old if method not in new]
    note = Markup("<p>Inherited: {}</p>").format(", ".join(inherited)) if inherited else ""
    return Markup(
        '<div class="scrolls" tabindex="0" role="group" aria-label="{} beside {}">'
        '<table class="facts">{}</table></div>{}'
    ).format(before, after, Markup("").join(rows), note)


def _statements(name: str) -> dict[str, list[str]]:
    """Return the source of a class's methods, signature first, then statement by statement, without docstrings."""
    module, _, class_name = name.rpartition(".")
    source = Module(module)
    found: dict[str, list[str]] = {}
    for unit in source.find(class_name):
        method = unit.symbol.removeprefix(class_name).lstrip(".")
        if unit.symbol in source.functions:
            lines = source.lines[unit.first - 1 : unit.last]
            text = textwrap.dedent("\n".join(lines))
            if unit.is_head:
                text = re.sub(r'\n\s*""".*?"""', "", text, flags=re.DOTALL)
            found.setdefault(method, []).append(text)
    if not found:
        raise WalkError(f"{name} has no methods to compare")
    return found


def _code(text: str) -> Markup:
    return Markup("<pre><code>{}</code></pre>").format(Markup("\n".join(code_html(text + "\n"))))


class Live(Block):
    """`/// live`: the bundled model, which runs in the page."""

    NAME = "live"

    def on_create(self, parent: ElementTree.Element) -> ElementTree.Element:
        """Insert the live model's container, and say what it downloads."""
        place = ElementTree.SubElement(
            parent,
            "div",
            {"class": "live", "data-model": "assets/model.js", "data-weights": "generated/weights.js"},
        )
        without = ElementTree.SubElement(place, "noscript")
        ElementTree.SubElement(without, "p").text = "The live model needs scripts; all else on this page does not."
        return place


class Expressions(Preprocessor):
    """Preprocessor that replaces `{{ ... }}` by its value, outside blocks of code."""

    def run(self, lines: list[str]) -> list[str]:
        """Replace line by line."""
        found, fence = [], ""
        for line in lines:
            mark = re.match(r"\s*(```+|~~~+)", line)
            if mark:
                fence = "" if fence and mark[1].startswith(fence) else fence or mark[1]
            found.append(line if fence else re.sub(r"`[^`]*`|\{\{(.+?)\}\}", self._value, line))
        return found

    def _value(self, found: re.Match[str]) -> str:
        names = {**facts.NAMES, **exercises.NAMES}
        return self.md.htmlStash.store(evaluate(found[1].strip(), names)) if found[1] else found[0]


class Formula(InlineProcessor):
    r"""`$\sqrt{\ax{head_dim}}$`: TeX, as MathML, with axes that are coloured like everywhere else."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]  # noqa: N802
        """Convert one formula."""
        return self.md.htmlStash.store(formula_html(m[1])), m.start(0), m.end(0)


def formula_html(tex: str) -> str:
    """Convert TeX to MathML."""
    axes = re.findall(r"\\ax\{(\w+)\}", tex)
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown:
        raise WalkError(f"the formula {tex} names {unknown[0]}, which is no axis")
    plain = re.sub(r"\\ax\{(\w+)\}", lambda found: rf"\text{{AXIS{list(AXES).index(found[1])}}}", tex)
    math = latex2mathml.converter.convert(plain)
    for number, axis in enumerate(AXES):
        math = math.replace(f"<mtext>AXIS{number}</mtext>", f'<mtext class="ax" data-ax="{axis}">{axis}</mtext>')
    return math


class AxesInProse(Treeprocessor):
    """Tree processor that marks each axis that prose names as code."""

    def run(self, root: ElementTree.Element) -> None:
        """Mark axes in each piece of code."""
        for code in root.iter("code"):
            words = (code.text or "").split()
            if words and not len(code) and all(word.strip("()") in AXES for word in words):
                code.text = self.md.htmlStash.store(pattern_html(code.text or ""))


def register(md: Markdown) -> None:
    """Register the processors of this module, all but the blocks."""
    md.preprocessors.register(Expressions(md), "expressions", 26)  # before fenced code is put away
    md.inlinePatterns.register(Formula(r"(?<!\\)\$([^$\n]+)\$", md), "formula", 185)
    md.treeprocessors.register(AxesInProse(md), "axes_in_prose", 5)
