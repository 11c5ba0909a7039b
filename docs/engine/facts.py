"""Numbers in pages, put in by `{{ ... }}`: computed from the code, or read from records of measurements.

A page writes `{{ sizes("parameters") }}` and not 124,439,808. An expression may use what `NAMES` holds.
"""

import functools
import json
import math
import re
import statistics
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import yaml
from markupsafe import Markup

from allformers.benchmark.contenders import COMPILED, OURS, PACKED, PEERS
from allformers.benchmark.measure import Result
from allformers.checkpoints.config_json import accepted_words
from allformers.checkpoints.tables import IGNORED_FIELDS, REQUIRED, Field
from allformers.experiments import EXPERIMENTS
from allformers.experiments.experiment import question_of
from allformers.generation.decoder import Decoder
from allformers.inspection import figures
from allformers.inspection.family import Member
from allformers.inspection.family import family as members_of_the_family
from allformers.inspection.flatten import flatten
from allformers.models.registry import READING_ORDER
from allformers.nn.axes import AXES
from docs.engine import PAGES, RECORDS, ROOT
from docs.engine.breaks import outcome
from docs.engine.prepare import prepared
from docs.engine.presets import presets
from docs.engine.record import WalkError

SIZES_SHOWN = "gpt2_small"
"""The preset whose sizes a page shows before its reader chooses another."""


# -- What depends on the size of a model -------------------------------------------------------------------------------


def bytes_text(number: float) -> str:
    """Return a number of bytes as text, in a suitable unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:,.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:,.2f} {unit}"
        number /= 1024
    raise AssertionError


def flops_text(number: float) -> str:
    """Return a number of floating-point operations as text, in a suitable unit."""
    for unit in ("", "kilo", "mega", "giga"):
        if number < 1000 or unit == "giga":
            return f"{number:,.2f} {unit}FLOPs"
        number /= 1000
    raise AssertionError


@functools.cache
def _summary(module: str, preset: str) -> Any:
    """Return the summary of a preset: its parameters, FLOPs and bytes."""
    (name,) = (entry.name for entry in READING_ORDER if entry.module == module)
    return types.SimpleNamespace(**prepared(f"costs-{name}")[preset])


MEASURES: Mapping[str, Callable[[str, str], str]] = {
    "parameters": lambda module, preset: f"{_summary(module, preset).parameters:,}",
    "FLOPs": lambda module, preset: flops_text(_summary(module, preset).flops_per_token),
    "weight bytes": lambda module, preset: bytes_text(_summary(module, preset).weight_bytes),
    "cache bytes": lambda module, preset: bytes_text(_summary(module, preset).cache_bytes_per_token),
    "whole cache": lambda module, preset: bytes_text(
        _summary(module, preset).cache_bytes_per_token * presets(module)[preset].context_length
    ),
}
"""What can be said of each preset, beside its configuration's fields and its axes."""


def shown(names: Iterable[str]) -> str:
    """Return the preset that a page shows first: the smallest published one."""
    known = list(names)
    return SIZES_SHOWN if SIZES_SHOWN in known else known[min(1, len(known) - 1)]


def sizes_html(numbers: Mapping[str, str]) -> Markup:
    """Return the HTML of a number for each size of a model, switched by the page."""
    first = numbers[shown(numbers)]
    if len(set(numbers.values())) == 1:
        return Markup("<b>{}</b>").format(first)
    return Markup('<b data-sizes="{}">{}</b>').format(json.dumps(numbers), first)


def sizes(what: str, module: str = "allformers.models.gpt2.gpt2") -> Markup:
    """Return a measure, a field of the configuration or an axis, for every preset."""
    found = {}
    for preset, config in presets(module).items():
        if what in MEASURES:
            found[preset] = MEASURES[what](module, preset)
        elif what in config.axes:
            found[preset] = f"{config.axes[what]:,}"
        else:
            found[preset] = f"{getattr(config, what):,}"
    return sizes_html(found)


def size(preset: str, what: str, module: str = "allformers.models.gpt2.gpt2") -> str:
    """Return a measure, field or axis of one preset, independent of the page's switch."""
    config = presets(module)[preset]
    if what in MEASURES:
        return MEASURES[what](module, preset)
    return f"{config.axes[what] if what in config.axes else getattr(config, what):,}"


# -- Tables ------------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str) -> Markup:
    """Return an HTML table with numbers aligned right, which scrolls where it is too wide."""

    def cell(value: Any) -> Markup:
        number = isinstance(value, str) and re.fullmatch(r"[\d.,]+(e-?\d+)?( \w*[bB]\w*)?", value)
        return Markup('<td class="number">{}</td>' if number else "<td>{}</td>").format(value)

    head = Markup("").join(Markup('<th scope="col">{}</th>').format(title) for title in header)
    body = Markup("").join(Markup("<tr>{}</tr>").format(Markup("").join(cell(value) for value in row)) for row in rows)
    return Markup(
        '<div class="scrolls" tabindex="0" role="region" aria-label="{0}"><table class="facts"><caption>{0}</caption>'
        "<thead><tr>{1}</tr></thead><tbody>{2}</tbody></table></div>"
    ).format(caption, head, body)


def axes() -> Markup:
    """Return a table of the axes and their meanings."""
    rows = [
        (Markup('<code><span class="ax" data-ax="{0}">{0}</span></code>').format(axis), meaning)
        for axis, meaning in AXES.items()
    ]
    return table(("axis", "meaning"), rows, "Axes of all models here")


def preset_table(module: str = "allformers.models.gpt2.gpt2") -> Markup:
    """Return a table of every preset with its sizes."""
    fields = ("num_layers", "heads", "embed", "mlp", "vocab", "context", "parameters", "weight bytes", "cache bytes")
    rows = [
        (Markup("<code>{}()</code>").format(name), *(size(name, f, module) for f in fields)) for name in presets(module)
    ]
    return table(
        ("preset", "layers", *fields[1:-2], "weights", "cache a token"), rows, "Sizes of the presets, in float32"
    )


def strip(module: str, year: str, parent: str, paper: str) -> Markup:
    """Return the strip on top of a model's page: its source, the cost of each size, and its parity."""
    (entry,) = (entry for entry in READING_ORDER if entry.module == module)
    options = Markup("").join(
        Markup('<option value="{}"{}>{}</option>').format(
            name, Markup(" selected") if name == shown(presets(module)) else "", name.replace("_", " ")
        )
        for name in presets(module)
    )
    costs = {
        "parameters": sizes("parameters", module),
        "layers": sizes("num_layers", module),
        "FLOPs for a token, mean over a context": sizes("FLOPs", module),
        "weights": sizes("weight bytes", module),
        "cache for a token": sizes("cache bytes", module),
        "cache of a whole context": sizes("whole cache", module),
    }
    if not issubclass(entry.load(), Decoder):  # an encoder has none
        costs = {what: cost for what, cost in costs.items() if "cache" not in what}
    cells = Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*item) for item in costs.items())
    return Markup(
        '<div class="strip"><p>{year}, after {parent}. Paper: <cite>{paper}</cite>.</p>'
        '<label>Sizes of <select class="sizes">{options}</select></label><dl>{cells}</dl>'
        '<p>Proven equal: {badge}. <a href="parity.html">How that is measured</a></p></div>'
    ).format(
        year=year,
        parent=parent,
        paper=paper,
        options=options,
        cells=cells,
        badge=parity_badge(entry.name, issubclass(entry.load(), Decoder)),
    )


def one_file(module: str) -> Markup:
    """Return the folded box with a model as one file, and a link that downloads the file."""
    from docs.engine.walk import code_html  # which shows what this module computes

    (entry,) = (entry for entry in READING_ORDER if entry.module == module)
    source = flattened(entry.name)
    return Markup(
        '<details class="one-file" data-search-exclude><summary>The model as one file, {lines} lines</summary>'
        "<p>Each class with all its methods, as Python finds them; a comment says where an inherited one is written. "
        'The file can be run: <a href="{address}" download>download {name}</a>, or print it with '
        "<code>allformers show {model}</code>.</p>"
        '<pre tabindex="0" role="group" aria-label="{class_name} as one file"><code>{code}</code></pre></details>'
    ).format(
        lines=source.count("\n"),
        address=_one_file_address(entry.name),
        name=_one_file_address(entry.name).rpartition("/")[2],
        model=entry.name,
        class_name=entry.class_name,
        code=Markup("\n".join(code_html(source))),
    )


def one_files() -> dict[str, str]:
    """Return the files that the boxes of `one_file` offer, by address."""
    return {_one_file_address(entry.name): flattened(entry.name) for entry in READING_ORDER}


def _one_file_address(name: str) -> str:
    return f"generated/one-file/{name.replace('-', '_')}.py"


@functools.cache
def flattened(name: str) -> str:
    """Return a model as one file."""
    return flatten(next(entry for entry in READING_ORDER if entry.name == name).load())


# -- What was recorded -------------------------------------------------------------------------------------------------


@functools.cache
def record(name: str) -> Any:
    """Read a record by its file's name.

    Raises:
        WalkError: there is none.
    """
    path = RECORDS / name
    if not path.is_file():
        raise WalkError(f"there is no record {path.relative_to(ROOT)}")
    return json.loads(path.read_text(encoding="utf-8"))


def parity_badge(name: str = "gpt2", writes: bool = True) -> Markup:
    """Return a sentence with the largest difference from the reference's logits, and the number of comparisons."""
    found = record(f"{name}-parity.json")
    rows = [row for row in found["rows"] if row["dtype"] == "float32" and row["of"] == "logits"]
    worst, count = max(row["largest"] for row in rows), sum(row["comparisons"] for row in rows)
    return Markup("{} comparisons of logits with transformers {}, all within {:.1e} of the largest{}").format(
        count, found["transformers"], worst, "; every greedy token the same" if writes else ""
    )


def parity_table(name: str = "gpt2") -> Markup:
    """Return a table of every comparison with the reference, as the tests recorded it."""
    found = record(f"{name}-parity.json")
    rows = [
        (row["what"], row["of"], row["dtype"], f"{row['comparisons']:,}", f"{row['largest']:.1e}", f"{row['bar']:.0e}")
        for row in found["rows"]
    ]
    title = (
        f"Differences from transformers {found['transformers']}, PyTorch {found['torch']}, every parameter perturbed"
    )
    return table(("what", "of", "in", "comparisons", "largest difference", "bar"), rows, title)


def family_parity() -> Markup:
    """Return a table of every model: the settings compared, and the largest difference in each precision."""
    rows = []
    for entry in READING_ORDER:
        found = [row for row in record(f"{entry.name}-parity.json")["rows"] if row["of"] == "logits"]
        count = sum(row["comparisons"] for row in found if row["dtype"] == "float32")
        worst = [
            f"{max(row['largest'] for row in found if row['dtype'] == dtype):.1e}" for dtype in ("float32", "float64")
        ]
        link = Markup('<a href="{}.html">{}</a>').format(entry.name, entry.class_name)
        rows.append((link, f"{count:,}", *worst))
    header = ("model", "comparisons in float32", "largest difference in float32", "in float64")
    return table(header, rows, "Logits of every model beside those of the reference")


def config_fields() -> Markup:
    """Return what becomes of every field of `config.json`, a table for each family, from the tables of its format."""
    tables = [table(("field", "what becomes of it"), _ignored(IGNORED_FIELDS), "Ignored in every family")]
    for entry in READING_ORDER:
        form = entry.load().checkpoint_format()
        rows = [_read(field) for field in form.fields]
        rows += [
            (_code(alias), Markup("another name of {}").format(_code(name))) for alias, name in form.aliases.items()
        ]
        rows += [
            (_code(name), Markup("refused, but for {}: {}").format(accepted_words(accepted), reason))
            for name, (accepted, reason) in form.unsupported_fields.items()
        ]
        rows += _ignored({name: why for name, why in form.ignored_fields.items() if name not in IGNORED_FIELDS})
        tables.append(
            Markup('<details><summary>{}, <code>"model_type": "{}"</code></summary>{}</details>').format(
                entry.class_name, form.model_type, table(("field", "what becomes of it"), rows, entry.class_name)
            )
        )
    return Markup("").join(tables)


def _read(field: Field) -> tuple[Markup, Markup]:
    """Return the row of a field that is read: what it is called here, and what its absence means."""
    if field.default is REQUIRED:
        missing = "required"
    elif callable(field.default):
        missing = "follows from other fields where it is missing"
    else:
        missing = f"{json.dumps(field.default)} where it is missing"
    missing += " or null" if field.null_is_missing and field.default is not REQUIRED else ""
    when = f"; counts where {field.when[0]} is {' or '.join(field.when[1:])}" if field.when else ""
    training = "; in training alone" if field.for_training else ""
    return _code(field.theirs), Markup("{}, {}{}{}").format(_code(field.ours), missing, when, training)


def _ignored(reasons: Mapping[str, str]) -> list[tuple[Markup, Markup]]:
    return [(_code(name), Markup("ignored: {}").format(reason)) for name, reason in reasons.items()]


def _code(name: str) -> Markup:
    return Markup("<code>{}</code>").format(name)


def config_sweep() -> Markup:
    """Return a table of the sweep over the fields of `config.json`, as the tests recorded it."""
    found = record("config-sweep.json")
    columns = ("fields", "files", "equal", "refused", "ours alone")
    rows = [(_code(row["family"]), *(f"{row[column]:,}" for column in columns)) for row in found["rows"]]
    rows.append(("all", *(f"{sum(row[column] for row in found['rows']):,}" for column in columns)))
    header = ("family", "fields", "files", "equal logits", "refused by name", "not read by the reference")
    return table(header, rows, f"Every field of transformers {found['transformers']}, one after the other")


def rows_of(found: Any) -> dict[str, Result]:
    """The results in a benchmark's record."""
    return {what: Result.from_record(what, row) for what, row in found["rows"].items()}


def benchmark_table(about: str, name: str = "benchmark.json", rows: str = "") -> Markup:
    """Return a table of a recorded benchmark: the rows whose names contain a word, or all durations."""
    found = record(name)
    measured = {
        what: row
        for what, row in rows_of(found).items()
        if (rows in what if rows else what.startswith(("prefill", "decode", "train")))
    }
    contenders = list(dict.fromkeys(one for row in measured.values() for one in row.measured))
    contenders.sort(key=lambda one: not one.startswith(OURS))
    lines = []
    for what, row in measured.items():
        lines.append(
            (
                f"{what}, {row.unit}",
                *(f"{row.median(one):,.1f}" if one in row.measured else "" for one in contenders),
                f"{row.ratio(row.best):.2f}",
                f"{row.median(row.best) / row.roofline:.2f}" if row.roofline else "",
            )
        )
    title = (
        f"{about}: {found['preset']}, {found['dtype']}, {found['device']}, {found['threads']} threads, medians of "
        f"{found['rounds']} rounds; transformers {found['transformers']}, PyTorch {found['torch']}"
    )
    return table(("what", *contenders, "ratio", "times the roofline"), lines, title)


def decoding() -> Markup:
    """Return a table of the time per decoded token in each size measured, beside the reference."""
    sizes = {size.name: size.parameters for entry in READING_ORDER for size in entry.sizes()}
    ours = (OURS, PACKED, COMPILED)
    lines = []
    for path in sorted(RECORDS.glob("decode/*.json"), key=lambda path: sizes[path.stem]):
        found = record(f"decode/{path.name}")
        (row,) = rows_of(found).values()
        peer = min((name for name in row.measured if name in PEERS), key=row.median)
        times = [f"{row.median(name):,.1f}" if name in row.measured else "" for name in (*ours, peer)]
        count = f"{sizes[path.stem] / 1e6:,.1f}"
        lines.append(
            (path.stem, count, *times, f"{row.ratio(row.best):.2f}", f"{found['threads']}", f"{found['rounds']}")
        )
    header = ("preset", "million parameters", *ours, "the fastest peer", "ratio", "threads", "rounds")
    return table(header, lines, "Decoding one text, ms a token, float32")


def bounds(name: str = "benchmark.json") -> Markup:
    """Return a table of a pass's duration and the share of its linear layers, from the rows that time one of them."""
    found = record(name)
    model = presets("allformers.models.gpt2.gpt2")[found["preset"].replace("-", "_")]
    inner = 12 * model.num_layers * model.embedding_dim**2  # four squares in attention, eight in the MLP
    head = model.vocab_size * model.embedding_dim
    measured = rows_of(found)
    timed = {
        int(match[1]): row.median(PACKED) / (int(match[2]) * int(match[3]))
        for what, row in measured.items()
        if (match := re.fullmatch(r"linear (\d+) x (\d+) to (\d+)", what)) and int(match[3]) != model.vocab_size
    }
    lines = []
    for what, rows in (("prefill 1x512", 512), ("decode 128+64, batch 1", 1), ("decode 128+64, batch 8", 8)):
        row = measured[what]
        linear, whole = timed[rows] * (inner + head), row.median(PACKED)
        compiled = f"{row.median(COMPILED):.1f}" if COMPILED in row.measured else ""
        lines.append((what, f"{row.roofline:.1f}", f"{linear:.1f}", f"{whole - linear:.1f}", f"{whole:.1f}", compiled))
    title = f"What bounds a pass, in ms: {found['preset']}, {found['dtype']}, packed"
    return table(("what", "roofline", "linear layers alone", "everything else", "whole", "compiled"), lines, title)


def weight_formats() -> Markup:
    """The cost of each weight format: bytes of the linear layers, and the loss on text not learned from."""
    rows = [
        (name, bytes_text(found["bytes"]), f"{found['loss']:.4f}", f"{math.exp(found['loss']):.4f}")
        for name, found in prepared("weight_formats").items()
    ]
    return table(("weights", "linear layers", "loss, nats a byte", "perplexity"), rows, "The bundled model")


def scaling(name: str = "scale.json") -> Markup:
    """Return figures of time and memory over the length, the batch and the model."""
    found = record(name)["rows"]
    sizes = {size.name: size.parameters / 1e6 for entry in READING_ORDER for size in entry.sizes()}
    plots = []
    for title, pattern, across in (
        ("time of a pass, ms", r"prefill 1x(\d+)", "tokens"),
        ("time of a pass over 128 tokens, ms", r"prefill (\d+)x128", "batch"),
        ("memory of a pass, MiB", r"memory of 1x(\d+)", "tokens"),
        ("time of a pass over 128 tokens, ms", r"(gpt2-\w+), 1x128", "million parameters"),
    ):
        rows = {
            round(sizes.get(match[1]) or float(match[1])): row
            for what, row in found.items()
            if (match := re.fullmatch(f"scale: {pattern}", what))
        }
        names = next(iter(rows.values()))["measured"]
        lines = {one: [statistics.median(row["measured"][one]) for row in rows.values()] for one in names}
        plots.append((title, lines, list(rows), across))
    drawn = [
        inline_svg(figures.to_svg(figures.subplots(*two, log=(True, True))), f"scale{number}")
        for number, two in enumerate((plots[:2], plots[2:]))
    ]
    return Markup(
        '<div class="scrolls" tabindex="0" role="group" aria-label="Figure: how time and memory grow">{}</div>'
    ).format(Markup("".join(drawn)))


def recorded_command(name: str) -> Markup:
    """Return the command that made a record."""
    return Markup("<code>{}</code>").format(record(name)["command"])


def inline_svg(drawn: str, prefix: str) -> str:
    """Return an SVG to be put into a page beside others, with only the ids that it refers to, made unique."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', drawn))
    drawn = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", drawn)
    drawn = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", drawn)
    drawn = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    return re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", drawn))


# -- Why ---------------------------------------------------------------------------------------------------------------


def why(name: str) -> Markup:
    """Return an experiment's question, its conclusion, its figure, and the command that gives them."""
    if name not in EXPERIMENTS:
        raise WalkError(f"there is no experiment {name!r}; there are: {', '.join(EXPERIMENTS)}")
    found = prepared(f"experiment-{name}")
    return Markup(
        '<details class="why" id="why-{name}"><summary>{question}</summary><p>{conclusion}</p>'
        '<div class="scrolls" tabindex="0" role="group" aria-label="Figure: {question}">{figure}</div>'
        "<p>Measured by <code>allformers experiment {name}</code>.</p></details>"
    ).format(
        name=name,
        question=question_of(EXPERIMENTS[name]),
        conclusion=found["conclusion"],
        figure=Markup(inline_svg(found["figure"], name)),
    )


def questions() -> Markup:
    """Return a list of all questions, each a link to its answer."""
    items = Markup("").join(
        Markup('<li><a href="gpt2.html#why-{}">{}</a></li>').format(name, question_of(run))
        for name, run in EXPERIMENTS.items()
    )
    return Markup("<ul>{}</ul>").format(items)


def breaks() -> list[tuple[str, str, str]]:
    """Return all changes in the pages that break the model: title, old source, new source."""
    found = []
    for page in sorted(PAGES.glob("*.md")):
        for title, options in re.findall(
            r"^/// break \| (.+)\n((?:    .+\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            values = yaml.safe_load(options)
            found.append((title, values["replace"], values["with"]))
    return found


def damages() -> Markup:
    """Return a table of each change and the loss that it led to, the worst first."""
    outcomes = [(title, outcome(replace, by)) for title, replace, by in breaks()]
    ran = sorted((found.loss, title) for title, found in outcomes if not found.error)
    rows = [("As it is", f"{outcome().loss:.4f}")] + [(title, f"{loss:.4f}") for loss, title in reversed(ran)]
    rows += [(title, "an error") for title, found in outcomes if found.error]
    return table(("change", "loss in nats a token"), rows, "Loss of the bundled model on text that it has not seen")


# -- The family --------------------------------------------------------------------------------------------------------


def family() -> Markup:
    """Return the tree of models, drawn from their imports."""
    members = members_of_the_family()

    def draw(member: Member) -> Markup:
        entry = member.entry
        below = Markup("").join(draw(child) for child in members if child.parent == entry.name)
        others = ", ".join(known[name].entry.class_name for name in member.takes_from)
        return Markup('<li><a href="{}.html">{}</a>: {}{}{}</li>').format(
            entry.name,
            entry.class_name,
            member.added,
            f" Takes parts from {others} too." if others else "",
            Markup("<ul>{}</ul>").format(below) if below else "",
        )

    known = {member.entry.name: member for member in members}
    roots = Markup("").join(draw(member) for member in members if member.parent is None)
    return Markup('<ul class="family">{}</ul>').format(roots)


NAMES: Mapping[str, Any] = {
    function.__name__: function
    for function in (
        axes,
        benchmark_table,
        bounds,
        config_fields,
        config_sweep,
        decoding,
        weight_formats,
        scaling,
        damages,
        family,
        family_parity,
        one_file,
        parity_badge,
        parity_table,
        preset_table,
        questions,
        recorded_command,
        size,
        sizes,
        strip,
        why,
    )
} | {"torch_version": torch.__version__.split("+")[0]}
"""What an expression on a page may use."""


def evaluate(expression: str, names: Mapping[str, Any] = NAMES) -> str:
    """Evaluate the expression in `{{ ... }}`.

    Raises:
        WalkError: it fails, or uses a name that is not among those.
    """
    try:
        return str(Markup.escape(eval(expression, {"__builtins__": {"True": True, "False": False}}, dict(names))))
    except WalkError:
        raise
    except Exception as error:
        raise WalkError(f"{{{{ {expression} }}}} fails: {error!r}") from error
