"""The built site says what is: code equals source, shapes and numbers equal a fresh run, links lead somewhere.

Each check is a function that lists what is wrong, so that the last tests can show that it notices what it is for.
"""

import ast
import html
import json
import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from einops import einsum, rearrange
from markdown import Markdown

from allformers.inspection import capture, meta_model
from allformers.inspection.flatten import flatten
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.models.registry import READING_ORDER, load
from allformers.models.registry import Entry as RegistryEntry
from allformers.nn.axes import AXES
from allformers.practice.course import SECTIONS, Entry, entries, find
from allformers.practice.source import answer, code, stub
from docs.engine import PAGES, ROOT, facts, prepare, record
from docs.engine.presets import presets
from docs.engine.record import Module, WalkError
from reading import Element, parse

GPT2_MODULE = "allformers.models.gpt2.gpt2"


# -- Code --------------------------------------------------------------------------------------------------------------


def walks(page: str) -> dict[str, Element]:
    """What the walks of a page show of each module."""
    found: dict[str, Element] = {}
    for walk in parse(page).find(".walk"):
        for unit in walk.find(".walk-unit"):
            found.setdefault(unit.attributes["data-module"], Element("div", {})).children.append(unit)
    return found


def wrong_code(walk: Element, source: str) -> list[str]:
    """Where the code of a walk is not the source, each line of each statement once."""
    problems, lines = [], source.splitlines()
    shown: list[int] = []
    for unit in walk.find(".walk-unit"):
        first, last = int(unit.attributes["data-first"]), int(unit.attributes["data-last"])
        (code,) = unit.find("pre")
        if code.text != "\n".join(lines[first - 1 : last]) + "\n":
            problems.append(f"lines {first} to {last} are not the source's")
        shown += range(first, last + 1)
    expected = set()
    for number, node in enumerate(ast.parse(source).body):
        is_docstring = number == 0 and isinstance(node, ast.Expr)
        is_import = isinstance(node, ast.Import | ast.ImportFrom) or ast.unparse(node).startswith("if TYPE_CHECKING:")
        if not is_import and not is_docstring:
            expected |= {n for n in range(node.lineno, (node.end_lineno or 0) + 1) if lines[n - 1].strip()}
            expected |= {d.lineno for d in getattr(node, "decorator_list", [])}
    problems += [f"line {n} is shown {shown.count(n)} times" for n in sorted(expected) if shown.count(n) != 1]
    return problems


def test_every_module_that_is_walked_is_shown_as_it_is(pages: dict[str, str]) -> None:
    found = {}
    for page in pages.values():
        for module, walk in walks(page).items():
            found[module] = wrong_code(walk, Module(module).source)
    assert not any(found.values()), found
    assert {entry.module for entry in READING_ORDER} <= set(found)  # every model has its page
    for folder, but in {"nn": {"__init__"}, "checkpoints": {"atomic"}, "generation": {"__init__"}}.items():
        files = {path.stem for path in (ROOT / "allformers" / folder).glob("*.py")}
        names = {f"allformers.{folder}.{name}".removesuffix(".__init__") for name in files - but}
        assert names <= set(found)


# -- Shapes and numbers ------------------------------------------------------------------------------------------------


def numbers_of(element: Element) -> dict[str, str]:
    """What a figure says, by preset."""
    sizes = element.attributes.get("data-sizes")
    return json.loads(sizes) if sizes else {}


def wrong_shapes(walk: Element) -> list[str]:
    """Where a shape in the margin is not what a real pass through tiny and bundled models captures."""
    problems, compared = [], 0
    for preset in ("tiny", "bundled"):
        config = presets(GPT2_MODULE)[preset]
        token_ids = torch.zeros(1, config.context_length, dtype=torch.long)
        model = GPT2(config).eval()
        with torch.inference_mode(), capture(model) as activations:
            model(token_ids)
        known = {
            name: activations[f"blocks.0.attention.{name}"]
            for name in ("queries", "keys", "values", "scores", "weights", "mixed")
        }
        known |= {name: activations[f"blocks.0.{name}"] for name in ("x_mid", "mlp.activated")} | {
            "logits": activations["logits"]
        }
        known["activated"] = known.pop("mlp.activated")
        # A new key stands where its query does: `seq`, until the cache has put earlier ones before it.
        before = {name: known[name]._replace(axes=("batch", "heads", "seq", "head_dim")) for name in ("keys", "values")}
        known |= before
        for row in walk.find(".walk-shape"):
            name = row.find("code")[0].text
            if name not in known:
                continue
            sizes = [b for axis in row.find(".walk-axis") for b in axis.find("b")]
            shown = tuple(int((numbers_of(b).get(preset) or b.text).replace(",", "")) for b in sizes)
            compared += 1
            if shown != tuple(known[name].values.shape):
                problems.append(f"{preset}: {name} is shown as {shown}, is {tuple(known[name].values.shape)}")
            axes = tuple(axis.find(".ax")[0].text for axis in row.find(".walk-axis"))
            if axes != known[name].axes:
                problems.append(f"{name} is shown with {axes}, has {known[name].axes}")
    return problems if compared >= 18 else [*problems, f"only {compared} shapes were compared"]


def wrong_values(walk: Element) -> list[str]:
    """Where a tensor's statistics are not those of a fresh pass."""
    model = load("bundled")
    with torch.inference_mode(), capture(model) as activations:
        model(record.prompt_ids())
    problems = []
    for name, values in {
        "queries": activations["blocks.0.attention.queries"].values,
        "mixed": activations["blocks.0.attention.mixed"].values,
        "activated": activations["blocks.0.mlp.activated"].values,
        "logits": activations["logits"].values,
    }.items():
        *_, row = (row for row in walk.find(".walk-shape") if row.find("code")[0].text == name)  # its last value
        said = re.search(r"mean (\S+), spread (\S+), from (\S+) to (\S+?)(;|$)", row.find("p")[0].text)
        assert said
        expected = [
            f"{float(v):.3g}" for v in (values.double().mean(), values.double().std(), values.min(), values.max())
        ]
        if list(said.groups()[:4]) != expected:
            problems.append(f"{name} is said to have {said.groups()[:4]}, has {expected}")
    return problems


def wrong_facts(page: str) -> list[str]:
    """Where the strip at a model's beginning is not what its configuration gives, counted another way."""
    (strip,) = parse(page).find(".strip")
    said = {div.find("dt")[0].text: div.find("b")[0] for div in strip.find("div") if div.find("dt")}
    problems = []
    for preset, config in presets(GPT2_MODULE).items():
        parameters = sum(p.numel() for p in meta_model(GPT2, config).parameters())
        cache = 2 * config.num_layers * config.embedding_dim * 4
        expected = {
            "parameters": f"{parameters:,}",
            "layers": f"{config.num_layers}",
            "weights": facts.bytes_text(4 * parameters),
            "cache for a token": facts.bytes_text(cache),
            "cache of a whole context": facts.bytes_text(cache * config.context_length),
        }
        for what, value in expected.items():
            if numbers_of(said[what])[preset] != value:
                problems.append(f"{preset}: {what} is said to be {numbers_of(said[what])[preset]}, is {value}")
    return problems


def test_shapes_in_the_margin_are_those_of_a_real_pass(pages: dict[str, str]) -> None:
    assert wrong_shapes(walks(pages["gpt2.html"])[GPT2_MODULE]) == []


def test_values_in_the_margin_are_those_of_a_real_pass(pages: dict[str, str]) -> None:
    assert wrong_values(walks(pages["gpt2.html"])[GPT2_MODULE]) == []


def test_facts_are_those_of_the_configurations(pages: dict[str, str]) -> None:
    assert wrong_facts(pages["gpt2.html"]) == []


def test_every_statement_that_makes_a_tensor_shows_its_shape(pages: dict[str, str]) -> None:
    walk = walks(pages["gpt2.html"])[GPT2_MODULE]
    shown = {row.find("code")[0].text for row in walk.find(".walk-shape")}
    made = ("positions", "mask", "x", "queries", "keys", "values", "scores", "weights", "mixed", "merged")
    assert {*made, "x_mid", "activated", "logits", "result"} <= shown
    for row in walk.find(".walk-axis"):
        assert row.find("b")


@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_every_model_has_a_record_of_parity_within_its_bars(entry: RegistryEntry) -> None:
    rows = facts.record(f"{entry.name}-parity.json")["rows"]
    assert {"float32", "float64"} <= {row["dtype"] for row in rows if row["of"] == "logits"}
    assert [row for row in rows if not row["largest"] <= row["bar"]] == []


# -- Exercises ---------------------------------------------------------------------------------------------------------


def test_the_navigation_lists_the_course_in_its_order() -> None:
    listed = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    (tab,) = (part["Practice"] for part in listed if "Practice" in part)
    sections = [
        {title: [{find(name).title: f"practice/{name}.md"} for name in names]} for title, names in SECTIONS.items()
    ]
    assert tab == [{"The course": "practice.md"}, *sections]


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_an_exercise_shows_what_start_writes_and_folds_its_solution_away(entry: Entry, pages: dict[str, str]) -> None:
    page = parse(pages[f"practice/{entry.name}.html"])
    exercise = entry.load()
    begun, *_ = page.find(".exercise")
    assert begun.text.strip() == code(exercise, solved=False).strip()
    assert stub(exercise).endswith(code(exercise, solved=False))
    *hints, solution = (box for box in page.find("details") if "open" not in box.attributes)
    assert len(hints) == 3
    assert answer(exercise).strip().splitlines()[-1] in solution.text
    assert f'href="practice/{entry.name}.html"' in pages["practice.html"]


def test_a_step_leads_to_the_exercise_on_what_it_explains(pages: dict[str, str]) -> None:
    for entry in entries():
        place, _, step = entry.load().page.partition("#")
        (found,) = (s for s in parse(pages[place]).find(".walk-step") if s.find("h3")[0].attributes["id"] == step)
        assert f"practice/{entry.name}.html" in [link.attributes["href"] for link in found.find("a")]


# -- Links, addresses, samples -----------------------------------------------------------------------------------------


def dead_links(pages: Mapping[str, str], site: Path) -> list[str]:
    """Links and files that a page refers to and that are not there."""
    parsed = {name: parse(page) for name, page in pages.items()}
    ids = {name: {e.attributes["id"] for e in page.walk() if e.attributes.get("id")} for name, page in parsed.items()}
    dead = []
    for name, page in parsed.items():
        for element in page.walk():
            for attribute in ("href", "src", "data-model", "data-weights"):
                target = urlsplit(element.attributes.get(attribute, ""))
                if target.scheme or target.netloc or not element.attributes.get(attribute):
                    continue
                joined = posixpath.join(posixpath.dirname(name), unquote(target.path))
                place = posixpath.normpath(joined) if target.path else name
                place = "index.html" if place == "." else place
                if not (site / place).is_file():
                    dead.append(f"{name}: {place}")
                elif target.fragment and place in ids and unquote(target.fragment) not in ids[place]:
                    dead.append(f"{name}: {place}#{target.fragment}")
    return dead


def test_every_link_leads_somewhere(pages: dict[str, str], site: Path) -> None:
    assert [link for link in dead_links(pages, site) if not link.startswith("404.html")] == []


def test_nothing_is_fetched_from_anywhere(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        for element in parse(page).walk():
            fetched = element.tag in {"script", "img", "iframe", "source", "video", "audio"} or (
                element.tag == "link" and element.attributes.get("rel") not in {"canonical", "prev", "next"}
            )
            address = element.attributes.get("src") or element.attributes.get("href") or ""
            assert not (fetched and re.match(r"(https?:)?//", address)), f"{name} fetches {address}"


def test_a_page_is_light(site: Path) -> None:
    import gzip

    page = site / "gpt2.html"
    parts = [page, *(site / "assets").rglob("*.css"), site / "assets" / "site.js", site / "assets" / "live.js"]
    parts += (site / "assets" / "javascripts").glob("bundle*.js")
    total = sum(len(gzip.compress(part.read_bytes())) for part in parts)
    assert total <= 300_000, f"the first view of GPT-2's page takes {total} bytes"
    assert (site / "generated" / "weights.js").stat().st_size <= 2_500_000


def test_search_finds_symbols_and_axes_and_leads_to_their_steps(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    for word, place in {
        "head_dim": "gpt2.html#CausalSelfAttention.forward.queries",
        "CausalSelfAttention": "gpt2.html#CausalSelfAttention",
        "keep_top_p": "writing.html",
        "seq_k": "gpt2.html#GPT2.mask",
    }.items():
        found = [entry["location"] for entry in entries if word in html.unescape(entry["text"] + entry["title"])]
        assert any(location.startswith(place) for location in found), (word, found)


def test_plain_pytorch_says_the_same() -> None:
    page = (PAGES / "gpt2.md").read_text(encoding="utf-8")
    samples = [
        re.sub(r"^    ", "", s, flags=re.M)
        for s in re.findall(r"^    ```python[^\n]*\n(.*?)^    ```", page, re.S | re.M)
    ]
    batch, seq, heads, head_dim = 2, 5, 3, 4
    fused = torch.randn(batch, seq, 3 * heads * head_dim)
    names = {"torch": torch, "fused": fused, "heads": heads, "head_dim": head_dim}
    names["mask"] = torch.ones(seq, seq, dtype=torch.bool).tril()
    names["weights"] = torch.randn(batch, heads, seq, seq)
    for sample in samples:
        exec(sample, names)
    queries, keys, values = rearrange(
        fused, "batch seq (qkv heads head_dim) -> qkv batch heads seq head_dim", qkv=3, heads=heads
    )
    scores = einsum(queries, keys, "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq seq_k")
    scores = torch.where(names["mask"], scores, torch.finfo(scores.dtype).min)  # type: ignore[call-overload]
    mixed = einsum(
        names["weights"], values, "batch heads seq seq_k, batch heads seq_k head_dim -> batch heads seq head_dim"
    )
    assert len(samples) == 3
    assert torch.equal(names["values"], values)  # type: ignore[arg-type]
    torch.testing.assert_close(names["scores"], scores)
    torch.testing.assert_close(
        names["merged"], rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")
    )


def test_every_axis_has_a_colour_light_and_dark() -> None:
    style = (ROOT / "docs" / "theme" / "assets" / "site.css").read_text(encoding="utf-8")
    for axis in AXES:
        assert len(re.findall(rf"--ax-{axis}: #", style)) == 2, axis
        assert f'.ax[data-ax="{axis}"] {{ color: var(--ax-{axis})' in style, axis


# -- That all this notices ---------------------------------------------------------------------------------------------


def render(page: str, source: str | None = None, monkeypatch: pytest.MonkeyPatch | None = None) -> str:
    """A page's Markdown as HTML, with the model's source replaced."""
    if source is not None and monkeypatch is not None:
        original = Module.__init__

        def changed(self: Module, name: str, text: str | None = None) -> None:
            original(self, name, source if name == GPT2_MODULE else text)

        monkeypatch.setattr(Module, "__init__", changed)
    return Markdown(
        extensions=["docs.engine.extension", "md_in_html", "attr_list", "pymdownx.details", "pymdownx.superfences"]
    ).convert(page)


SOURCE = (ROOT / "allformers" / "models" / "gpt2" / "gpt2.py").read_text(encoding="utf-8")
PAGE = (PAGES / "gpt2.md").read_text(encoding="utf-8")
WALK = PAGE[PAGE.index("//// walk") :]
WITHOUT_BOXES = re.sub(r"^/// break.*?^///$|\{\{.*?\}\}", "", WALK, flags=re.DOTALL | re.MULTILINE)


def change(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new, 1)


def in_the_walk(page: str, old: str, new: str) -> str:
    """Change a page behind its box of the whole file, which shows the same code."""
    before, walk, rest = page.partition('<div class="walk">')
    return before + walk + change(rest, old, new)


def test_the_box_on_each_models_page_is_the_model_as_one_file(pages: dict[str, str], site: Path) -> None:
    for entry in READING_ORDER:
        (box,) = parse(pages[f"{entry.name}.html"]).find(".one-file")
        (code,) = box.find("code")[-1:]
        source = flatten(entry.load())
        assert code.text.rstrip() == source.rstrip()
        (link,) = box.find("a")
        assert (site / link.attributes["href"]).read_text(encoding="utf-8") == source


BUILD_FAILS: dict[str, tuple[Callable[[str], str], Callable[[str], str], tuple[str, ...]]] = {
    "a variable is renamed": (
        lambda s: s.replace("mixed", "gathered"),
        lambda p: p,
        ("CausalSelfAttention.forward", "'mixed'"),
    ),
    "a method is added": (
        lambda s: change(
            s,
            "    @checked\n    def mask(",
            "    def extra(self) -> None:\n        pass\n\n    @checked\n    def mask(",
        ),
        lambda p: p,
        (GPT2_MODULE, "GPT2.extra", "pass"),
    ),
    "a function is added": (
        lambda s: change(s, "class MLP(", "def extra() -> None:\n    pass\n\n\nclass MLP("),
        lambda p: p,
        (GPT2_MODULE, "extra", "pass"),
    ),
    "a statement is added": (lambda s: f"{s}\nEXTRA = 1\n", lambda p: p, (GPT2_MODULE, "EXTRA = 1")),
    "a function is removed": (
        lambda s: s.replace("def unembed", "def score"),
        lambda p: p,
        (GPT2_MODULE, "GPT2.unembed"),
    ),
    "a statement stands twice": (
        lambda s: change(s, "        merged = rearrange", "        mixed: Float = mixed\n        merged = rearrange"),
        lambda p: p,
        ("CausalSelfAttention.forward", "2", "'mixed'"),
    ),
    "a step is removed": (
        lambda s: s,
        lambda p: re.sub(r"/// step \| Unembedding: logits.*?^///$", "", p, flags=re.DOTALL | re.MULTILINE),
        (GPT2_MODULE, "GPT2.unembed"),
    ),
    "a statement is in two steps": (
        lambda s: s,
        lambda p: change(p, "code: 'GPT2.unembed'", "code: 'GPT2.unembed; MLP'"),
        ("MLP", "Unembedding: logits"),
    ),
}


@pytest.mark.parametrize("mutation", BUILD_FAILS)
def test_the_build_fails_if(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change_source, change_page, named = BUILD_FAILS[mutation]
    monkeypatch.setattr("docs.engine.walk.recorded", lambda module: {})
    render(WITHOUT_BOXES, SOURCE, monkeypatch)  # all is well without the mutation
    monkeypatch.undo()
    monkeypatch.setattr("docs.engine.walk.recorded", lambda module: {})
    with pytest.raises(WalkError) as error:
        render(change_page(WITHOUT_BOXES), change_source(SOURCE), monkeypatch)
    assert [name for name in named if name not in str(error.value)] == []


@pytest.mark.parametrize(
    "harmless",
    [
        lambda source: change(source, "        merged = ", "        # a comment\n\n        merged = "),
        lambda source: change(source, "class MLP(nn.Module):\n", "\n# a comment\nclass MLP(nn.Module):\n"),
        lambda source: re.sub(r'^( *)"""(?=\w)', r'\1"""Another sentence. ', source, flags=re.MULTILINE),
        lambda source: f"{source}\n# a comment\n",
    ],
)
def test_the_build_takes_other_comments_and_docstrings(
    harmless: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("docs.engine.walk.recorded", lambda module: {})
    assert harmless(SOURCE) != SOURCE
    render(WITHOUT_BOXES, harmless(SOURCE), monkeypatch)
    assert prepare.syntax(ast.parse(harmless(SOURCE))) == prepare.syntax(ast.parse(SOURCE))


def test_a_walk_through_several_modules_shows_each_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("docs.engine.walk.recorded", lambda module: {})
    modules = "allformers.nn.axes", "allformers.nn.rope"
    symbols = [unit.symbol for name in modules for unit in Module(name).units]
    names = list(dict.fromkeys(symbol.partition(".")[0] for symbol in symbols))
    page = f"//// walk | {', '.join(modules)}\n\n/// step | All\n    code: '{'; '.join(names)}'\n///\n\n////\n"
    shown = walks(render(page))
    assert {name: wrong_code(shown[name], Module(name).source) for name in modules} == {name: [] for name in modules}
    (place,) = parse(render(page)).find(".walk-place")
    assert [link.text for link in place.find("a")] == ["axes.py", "rope.py"]
    (legend,) = parse(render(page)).find(".walk-legend")
    assert {item.attributes["data-axis"] for item in legend.find("li")} >= {"embed", "pair"}
    with pytest.raises(WalkError) as error:
        render(page.replace("AXES; ", ""))
    assert "allformers.nn.axes" in str(error.value)


def test_a_symbol_that_two_modules_of_a_walk_have_is_refused() -> None:
    with pytest.raises(WalkError) as error:
        render(f"//// walk | {GPT2_MODULE}, allformers.models.llama.llama\n\n/// step | A\n    code: MLP\n///\n\n////")
    for name in ("allformers.models.gpt2.gpt2", "allformers.models.llama.llama", "MLP"):
        assert name in str(error.value)


def test_the_reference_lists_every_public_module_once() -> None:
    package = ROOT / "allformers"
    empty = {path for path in package.rglob("__init__.py") if len(ast.parse(path.read_text(encoding="utf-8")).body) < 2}
    told_elsewhere = {*(package / "cli").glob("*"), *(package / "practice" / "exercises").glob("*")}
    told_elsewhere |= {
        package / "__main__.py",
        *(package / room / "__init__.py" for room in ("inspection", "benchmark")),
    }
    paths = sorted({*package.rglob("*.py")} - empty - told_elsewhere)
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    listed = re.findall(r"^::: (\S+)", (PAGES / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(name for name in names if not name.rpartition(".")[2].startswith("_"))


def test_the_build_fails_if_an_annotation_or_a_pattern_has_other_sizes_than_the_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Module(GPT2_MODULE)
    found = {("CausalSelfAttention.forward", line, "scores"): (2, 5, 17, 17) for line in [_line("scores: Float")]}
    sizes = {"batch": 2, "heads": 5, "seq": 17, "seq_k": 17}
    assert record._name_axes(source, found, sizes)
    with pytest.raises(WalkError, match="scores"):
        record._name_axes(source, dict.fromkeys(found, (2, 17, 5, 17)), sizes)


def _line(beginning: str) -> int:
    return next(n for n, line in enumerate(SOURCE.splitlines(), 1) if line.strip().startswith(beginning))


TINY = f"{sum(p.numel() for p in meta_model(GPT2, GPT2Config.tiny()).parameters()):,}"


SHOWN_IS_WRONG: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "two axes are swapped in the source": (
        lambda page: page,
        lambda source: change(
            source, "(qkv heads head_dim) -> qkv batch heads seq", "(qkv heads head_dim) -> qkv batch seq heads"
        ),
    ),
    "a constant is changed in the source": (
        lambda page: page,
        lambda s: change(s, '"num_layers": 48', '"num_layers": 46'),
    ),
    "a statement is added to the source": (
        lambda page: page,
        lambda s: change(
            s, "        merged = rearrange(mixed", "        mixed = mixed + 0\n        merged = rearrange(mixed"
        ),
    ),
    "a line of code on the page is changed": (
        lambda page: in_the_walk(page, "self.unembedding(self.final_norm(x))", "self.unembedding(self.mlp_norm(x))"),
        lambda s: s,
    ),
    "a size in the margin is changed": (
        lambda page: re.sub(r"(<code>scores</code>.*?&#34;tiny&#34;: &#34;)4", r"\g<1>5", page, count=1),
        lambda s: s,
    ),
    "an axis in the margin is changed": (
        lambda page: re.sub(r'(<code>weights</code>.*?data-ax=")heads">heads', r"\1mlp\">mlp", page, count=1),
        lambda s: s,
    ),
    "a fact is changed": (lambda page: change(page, TINY, "1"), lambda s: s),
    "a value in the margin is changed": (
        lambda page: re.sub(r"(<code>activated</code>.*?mean )\S+,", r"\g<1>0.5,", page, count=1),
        lambda s: s,
    ),
}


@pytest.mark.parametrize("mutation", SHOWN_IS_WRONG)
def test_the_checks_notice_that(mutation: str, pages: dict[str, str]) -> None:
    change_page, change_source = SHOWN_IS_WRONG[mutation]
    page, source = change_page(pages["gpt2.html"]), change_source(SOURCE)
    assert (page, source) != (pages["gpt2.html"], SOURCE)
    walk = walks(page)[GPT2_MODULE]
    assert wrong_code(walk, source) or wrong_facts(page) or wrong_shapes(walk) or wrong_values(walk)


def test_a_change_that_the_source_does_not_have_is_refused() -> None:
    from docs.engine.breaks import outcome

    with pytest.raises(WalkError, match="what is not there"):
        outcome("what is not there", "anything")


def test_a_change_of_a_table_of_checkpoints_is_run_too() -> None:
    from docs.engine.breaks import outcome

    changed = outcome('"(heads head_dim) embed -> embed (heads head_dim)"', '"embed (heads head_dim)"')
    assert changed.error == ""
    assert changed.loss > outcome().loss + 1


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("nothing('x')", "NameError"),
        ("why('no such')", "'no such'"),
        ("sizes('no such')", "AttributeError"),
    ],
)
def test_an_expression_that_fails_says_so(expression: str, message: str) -> None:
    with pytest.raises(WalkError, match=re.escape(message)):
        facts.evaluate(expression)


def test_a_formula_names_axes_that_there_are() -> None:
    from docs.engine.blocks import formula_html

    assert 'data-ax="head_dim"' in formula_html(r"\sqrt{\ax{head_dim}}")
    with pytest.raises(WalkError, match="width"):
        formula_html(r"\sqrt{\ax{width}}")
