"""Named axes without running: contradictions are found, and code that runs raises no alarm."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from allformers.cli import app
from allformers.inspection.check import check
from allformers.nn.axes import AXES
from conftest import names

PACKAGE = Path(__file__).parents[2] / "allformers"
MODELS = sorted((PACKAGE / "models").glob("*/*.py"))
FOLLOWED = [*MODELS, *sorted((PACKAGE / "nn").glob("*.py")), *sorted((PACKAGE / "practice/exercises").glob("*.py"))]


@pytest.mark.parametrize("path", FOLLOWED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_runs_here_is_clean_and_has_one_name_for_each_axis(path: Path) -> None:
    report = check(path.read_text(encoding="utf-8"))
    assert report.findings == []
    assert report.renamed == []


def test_most_patterns_of_attention_are_followed() -> None:
    report = check((PACKAGE / "models/gpt2/gpt2.py").read_text(encoding="utf-8"))
    assert report.followed >= 5
    assert {line for line, _ in report.unknown}.isdisjoint({finding.line for finding in report.findings})


HEAD = """
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Float, Int
from torch import Tensor

"""

WRONG = {
    "heads and positions swapped": (
        'def f(q: Float[Tensor, "batch seq heads head_dim"]):\n'
        '    return rearrange(q, "batch heads seq head_dim -> batch seq (heads head_dim)")',
        [2, "`seq`", "`heads`"],
    ),
    "an axis too few": (
        'def f(x: Float[Tensor, "batch seq embed"]):\n    return rearrange(x, "seq embed -> embed seq")',
        [2, "3 axes", "2"],
    ),
    "an axis too many": (
        'def f(x: Float[Tensor, "seq embed"]):\n    return reduce(x, "batch seq embed -> batch", "sum")',
        [2, "2 axes", "3"],
    ),
    "the result differs from its annotation": (
        'def f(x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:\n'
        '    return rearrange(x, "batch seq embed -> batch embed seq")',
        [2, "result", "`embed`", "`seq`"],
    ),
    "a variable differs from its annotation": (
        'def f(x: Float[Tensor, "batch seq embed"]):\n'
        '    y: Float[Tensor, "embed batch seq"] = rearrange(x, "batch seq embed -> batch embed seq")\n    return y',
        [2, "variable `y`", "`batch`", "`embed`"],
    ),
    "keys where queries are": (
        'def f(q: Float[Tensor, "batch heads seq head_dim"], k: Float[Tensor, "batch seq_k heads head_dim"]):\n'
        '    return einsum(q, k, "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq seq_k")',
        [2, "`seq_k`", "`heads`"],
    ),
    "weights and values": (
        'def f(w: Float[Tensor, "batch heads seq seq_k"], v: Float[Tensor, "batch heads seq_k head_dim"]):\n'
        '    return einsum(w, v, "batch heads seq_k seq, batch heads seq_k head_dim -> batch heads seq head_dim")',
        [2, "`seq`", "`seq_k`"],
    ),
    "after softmax": (
        'def f(s: Float[Tensor, "batch seq seq_k"]):\n    w = F.softmax(s, dim=-1)\n'
        '    return reduce(w, "batch seq_k seq -> batch", "max")',
        [3, "`seq`", "`seq_k`"],
    ),
    "after a method": (
        'def f(s: Float[Tensor, "batch seq"]):\n    return rearrange(s.float().clone(), "seq batch -> batch seq")',
        [2, "`batch`", "`seq`"],
    ),
    "after a multiplication": (
        'def f(self, q: Float[Tensor, "batch heads seq head_dim"]):\n    q = q * self.scale\n'
        '    return rearrange(q, "batch seq heads head_dim -> batch seq (heads head_dim)")',
        [3, "`heads`", "`seq`"],
    ),
    "after where": (
        'def f(m: Float[Tensor, "batch 1 seq seq_k"], s: Float[Tensor, "batch heads seq seq_k"]):\n'
        "    s = torch.where(m, s, torch.finfo(s.dtype).min)\n"
        '    return reduce(s, "batch seq heads seq_k -> batch heads", "max")',
        [3, "`heads`", "`seq`"],
    ),
    "an addition of two orders": (
        'def f(x: Float[Tensor, "batch seq embed"], y: Float[Tensor, "batch embed seq"]):\n    return x + y',
        [2, "`seq`", "`embed`"],
    ),
    "positions added along the batch": (
        'def f(x: Float[Tensor, "batch seq embed"], p: Float[Tensor, "batch embed"]):\n    return x + p',
        [2, "`seq`", "`batch`"],
    ),
    "in a branch": (
        'def f(x: Float[Tensor, "batch seq"], flag: bool):\n    if flag:\n'
        '        return rearrange(x, "seq batch -> batch seq")\n    return x',
        [3, "`batch`", "`seq`"],
    ),
    "past a branch that assigns something else": (
        'def f(k: Float[Tensor, "batch heads seq head_dim"], cache):\n    if cache is not None:\n'
        "        k = cache.append(k)\n"
        '    return reduce(k, "batch seq heads head_dim -> batch", "sum")',
        [4, "`heads`", "`seq`"],
    ),
    "in a loop": (
        'def f(x: Float[Tensor, "batch seq"]):\n    for _ in range(3):\n'
        '        print(reduce(x, "seq batch -> seq", "sum"))',
        [3, "`batch`", "`seq`"],
    ),
    "after unpacking": (
        'def f(x: Float[Tensor, "batch seq qkv heads head_dim"]):\n'
        '    q, k, v = rearrange(x, "batch seq qkv heads head_dim -> qkv batch heads seq head_dim")\n'
        '    return rearrange(q, "batch seq heads head_dim -> batch seq (heads head_dim)")',
        [3, "`heads`", "`seq`"],
    ),
    "a pattern whose result goes into another": (
        'def f(x: Float[Tensor, "batch seq embed"]):\n'
        '    turned = rearrange(rearrange(x, "batch seq embed -> seq batch embed"),\n'
        '        "batch seq embed -> embed batch seq")',
        [2, "`seq`", "`batch`"],
    ),
    "an ellipsis that hides the beginning": (
        'def f(x: Float[Tensor, "... seq head_dim"]):\n    return rearrange(x, "... head_dim seq -> ... seq head_dim")',
        [2, "`seq`", "`head_dim`"],
    ),
    "a method of a class": (
        'class A:\n    def f(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq"]:\n'
        '        return reduce(x, "batch seq embed -> batch embed", "mean")',
        [3, "A.f", "`embed`", "`seq`"],
    ),
    "an optional argument": (
        'def f(m: Float[Tensor, "seq seq_k"] | None):\n    return rearrange(m, "seq_k seq -> 1 1 seq seq_k")',
        [2, "`seq`", "`seq_k`"],
    ),
    "a one where an axis is": (
        'def f(x: Float[Tensor, "batch seq embed"]):\n    return rearrange(x, "batch 1 embed -> batch embed")',
        [2, "`seq`", "`1`"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_model_is_caught_with_its_line_and_both_shapes(name: str) -> None:
    source, (line, *parts) = WRONG[name]
    (finding, *_) = check(HEAD + source).findings
    assert finding.line == line + HEAD.count("\n")
    assert re.search(names(*parts), finding.message), finding


def swapped(source: str) -> Iterator[tuple[int, str]]:
    """Copies of a source in which two axes of one annotated argument have changed places, each with its line."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Subscript) and node.lineno == node.end_lineno:
            found = re.search(r'"([a-z_]+) ([a-z_]+) ([^"]*)"', ast.get_source_segment(source, node.annotation) or "")
            if found is not None and lines[node.lineno - 1].count(found[0]) == 1:
                wrong = lines[node.lineno - 1].replace(found[0], f'"{found[2]} {found[1]} {found[3]}"')
                yield node.lineno, "\n".join([*lines[: node.lineno - 1], wrong, *lines[node.lineno :]])


def test_swapped_axes_of_an_argument_that_a_pattern_reads_are_caught_in_real_models() -> None:
    caught = 0
    for path in MODELS:
        caught += sum(bool(check(source).findings) for _, source in swapped(path.read_text(encoding="utf-8")))
    assert caught >= 8


RUNS = {
    "a small GPT": """
class Block(torch.nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = torch.nn.LayerNorm(width), torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        scores = einsum(q, k, "b h i d, b h j d -> b h i j") * q.shape[-1] ** -0.5
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        scores = scores.masked_fill(~mask, float("-inf"))
        y = einsum(scores.softmax(dim=-1), v, "b h i j, b h j d -> b h i d")
        return x + self.out(rearrange(y, "b h t d -> b t (h d)"))

result = Block(8, 2)(torch.randn(2, 5, 8))
""",
    "a vision transformer": """
def patches(image: Float[Tensor, "b c h w"], p: int) -> Float[Tensor, "b n d"]:
    return rearrange(image, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=p, p2=p)

def pool(x: Float[Tensor, "b n d"], token: Float[Tensor, "d"], mean: bool) -> Float[Tensor, "b d"]:
    first = repeat(token, "d -> b 1 d", b=x.shape[0])
    x = torch.cat([first, x], dim=1)
    x = F.gelu(x) + 0.5 * x
    return reduce(x, "b n d -> b d", "mean") if mean else x[:, 0]

result = pool(patches(torch.randn(2, 3, 8, 8), 4), torch.zeros(48), True)
""",
    "rotary positions and a cache": """
def rotate(x: Float[Tensor, "... n d"], angles: Float[Tensor, "n half"]) -> Float[Tensor, "... n d"]:
    a, b = rearrange(x, "... n (two half) -> two ... n half", two=2)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)

def step(
    q: Float[Tensor, "b h 1 d"], k: Float[Tensor, "b h 1 d"], past: Float[Tensor, "b h m d"] | None = None
) -> Float[Tensor, "b h 1 n"]:
    if past is not None:
        k = torch.cat([past, k], dim=2)
    q = q * q.shape[-1] ** -0.5
    total = None
    for _ in range(2):
        scores = einsum(q, k, "b h one d, b h m d -> b h one m")
        total = scores if total is None else total + scores
    return total

x = torch.randn(2, 2, 1, 4)
result = step(rotate(x, torch.zeros(1, 2)), x, torch.randn(2, 2, 3, 4))
""",
}


@pytest.mark.parametrize("name", RUNS)
def test_code_that_runs_raises_no_alarm(name: str) -> None:
    namespace: dict[str, object] = {}
    exec(HEAD + RUNS[name], namespace)
    assert namespace["result"] is not None
    report = check(HEAD + RUNS[name])
    assert report.findings == []
    assert report.followed > 0


def test_a_name_outside_the_vocabulary_is_a_hint() -> None:
    report = check('def f(x: Float[Tensor, "batch hidden"]): ...', AXES)
    assert report.findings == []
    assert [hint.line for hint in report.hints] == [1]
    assert "`hidden`" in report.hints[0].message


def test_the_command_prints_what_it_found_and_what_it_could_not_follow(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(HEAD + WRONG["heads and positions swapped"][0], encoding="utf-8")
    wrong = CliRunner().invoke(app, ["check", str(path)])
    assert wrong.exit_code == 1
    assert re.search(names(path.name, "line 9", "`seq`", "`heads`", "batch seq heads head_dim"), wrong.stdout)
    clean = CliRunner().invoke(app, ["check", *map(str, MODELS)])
    assert clean.exit_code == 0
    assert re.search(r"gpt2\.py: \d+ .* 2 of unknown axes", clean.stdout)
    path.write_text("def (", encoding="utf-8")
    assert "model.py" in str(CliRunner().invoke(app, ["check", str(path)]).exception)
