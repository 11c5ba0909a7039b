"""Named axes without running: contradictions are found, and code that runs raises no alarm."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from allformers.cli import app
from allformers.inspection.check import Report, check
from allformers.nn.axes import AXES
from allformers.nn.shapes import ShapeError, checked
from conftest import names

PACKAGE = Path(__file__).parents[2] / "allformers"
MODELS = sorted((PACKAGE / "models").glob("*/*.py"))
FOLLOWED = [*MODELS, *sorted((PACKAGE / "nn").glob("*.py")), *sorted((PACKAGE / "practice/exercises").glob("*.py"))]


@functools.cache
def report_of(path: Path) -> Report:
    return check(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FOLLOWED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_runs_here_is_clean_and_has_one_name_for_each_axis(path: Path) -> None:
    assert report_of(path).findings == []
    assert report_of(path).renamed == []


def test_nine_of_ten_tensors_in_the_models_patterns_are_followed_and_all_of_gpt2() -> None:
    reports = {path.stem: report_of(path) for path in MODELS}
    followed = sum(report.followed for report in reports.values())
    assert followed >= 0.9 * (followed + sum(len(report.unknown) for report in reports.values()))
    assert followed >= 60
    assert (reports["gpt2"].followed, reports["gpt2"].unknown) == (7, [])


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
    "after a linear layer": (
        "class A(torch.nn.Module):\n"
        "    def __init__(self, embed: int):\n        super().__init__()\n"
        "        self.up = torch.nn.Linear(embed, embed)\n"
        '    def forward(self, x: Float[Tensor, "batch seq embed"]):\n'
        '        return rearrange(self.up(x), "seq batch mlp -> batch seq mlp")',
        [6, "`self.up(x)`", "`batch`", "`seq`"],
    ),
    "after a method with an annotation": (
        "class A:\n"
        '    def split(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch heads seq head_dim"]:\n'
        '        return rearrange(x, "batch seq (heads head_dim) -> batch heads seq head_dim", heads=2)\n'
        '    def f(self, x: Float[Tensor, "batch seq embed"]):\n'
        '        return rearrange(self.split(x), "batch seq heads head_dim -> batch seq (heads head_dim)")',
        [5, "A.f", "`self.split(x)`", "`seq`", "`heads`"],
    ),
    "after a function of this package": (
        "from allformers.nn.rope import apply_rope\n"
        'def f(q: Float[Tensor, "batch heads seq head_dim"], c: Float[Tensor, "seq pair"], '
        's: Float[Tensor, "seq pair"]):\n'
        '    return rearrange(apply_rope(q, c, s), "batch heads head_dim seq -> batch seq (heads head_dim)")',
        [3, "`seq`", "`head_dim`"],
    ),
    "after an index": (
        'def f(x: Float[Tensor, "batch seq embed"]):\n    return rearrange(x[:, 0], "embed batch -> batch embed")',
        [2, "`batch`", "`embed`"],
    ),
    "an einsum whose result is in another order": (
        'def f(w: Float[Tensor, "heads seq seq_k"], v: Float[Tensor, "heads seq_k head_dim"]) '
        '-> Float[Tensor, "heads seq head_dim"]:\n'
        '    return einsum(w, v, "heads seq seq_k, heads seq_k head_dim -> seq heads head_dim")',
        [2, "`seq`", "`heads`", "heads seq seq_k, heads seq_k head_dim -> seq heads head_dim"],
    ),
    "an axis on the right side alone": (
        'def f(x: Float[Tensor, "batch seq"]):\n    return einsum(x, x, "batch seq, batch seq -> batch embed")',
        [2, "`embed`", "batch seq, batch seq -> batch embed"],
    ),
    "more tensors than sides": (
        'def f(x: Float[Tensor, "batch seq"]):\n    return einsum(x, x, "batch seq -> batch")',
        [2, "2 tensors", "1"],
    ),
    "outside of functions": (
        'x: Float[Tensor, "batch seq"] = torch.zeros(2, 3)\nrearrange(x, "seq batch -> batch seq")',
        [2, "`batch`", "`seq`"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_model_is_caught_with_its_line_and_both_shapes(name: str) -> None:
    source, (line, *parts) = WRONG[name]
    (finding, *_) = check(HEAD + source).findings
    assert finding.line == line + HEAD.count("\n")
    assert re.search(names(*parts), finding.message), finding


def test_a_fault_shows_both_shapes_and_the_whole_pattern_in_the_words_of_an_error_at_run_time() -> None:
    source = WRONG["weights and values"][0]
    (finding, *_) = check(HEAD + source).findings
    assert finding.message.splitlines() == [
        "f: argument `w` of einsum has axis `seq`, expected `seq_k`",
        "  came:     batch heads seq seq_k",
        "  expected: batch heads seq_k seq",
        "  pattern:  batch heads seq_k seq, batch heads seq_k head_dim -> batch heads seq head_dim",
    ]
    namespace: dict[str, Any] = {}
    exec(HEAD + RUNS["a vision transformer"], namespace)
    with pytest.raises(ShapeError) as error:
        checked(namespace["pool"])(torch.zeros(2, 3, 4), torch.zeros(5), True)
    at_run_time = str(error.value).splitlines()
    assert re.match(r"pool: argument `token` has \d+ on axis `d`, expected \d+", at_run_time[0])
    assert [line[:12] for line in at_run_time[1:]] == [line[:12] for line in finding.message.splitlines()[1:3]]


def swapped(source: str) -> Iterator[tuple[int, str]]:
    """Copies of a source in which two axes of one annotated argument have changed places, each with its line."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Subscript) and node.lineno == node.end_lineno:
            found = re.search(r'"([a-z_]+) ([a-z_]+) ([^"]*)"', ast.get_source_segment(source, node.annotation) or "")
            if found is not None and lines[node.lineno - 1].count(found[0]) == 1:
                wrong = lines[node.lineno - 1].replace(found[0], f'"{found[2]} {found[1]} {found[3]}"')
                yield node.lineno, "\n".join([*lines[: node.lineno - 1], wrong, *lines[node.lineno :]])


@pytest.mark.parametrize(
    ("model", "least"),
    [("gpt2", 3), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("llama", 5), ("deepseek_v3", 12)))],
)
def test_swapped_axes_of_an_argument_that_a_pattern_reads_are_caught_in_real_models(model: str, least: int) -> None:
    source = (PACKAGE / f"models/{model}/{model}.py").read_text(encoding="utf-8")
    assert sum(bool(check(wrong).findings) for _, wrong in swapped(source)) >= least


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
    "names that come back": """
import math
from jaxtyping import Bool
from torch import nn


def last(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    return x[..., -1, :]


def squash(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return x.sum(-1)


def twice(m: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
    return rearrange(m, "rows columns -> columns rows")


def gram(x: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    return einsum(x, x, "n d, n e -> d e")


def use(x: Float[Tensor, "b t d"], m: Float[Tensor, "rows columns"]):
    y = last(x)
    z = squash(x)
    a = reduce(y, "b d -> b", "sum") + reduce(z, "b t -> b", "sum")
    return a, twice(twice(m)), gram(x[0])


def correlated(x: Float[Tensor, "b t"], flag: bool, other):
    if flag:
        x = other(x)
    if flag:
        return rearrange(x, "b t d -> b (t d)")
    return rearrange(x, "b t -> t b")


def early(x: Float[Tensor, "b t"], flag: bool, other):
    if flag:
        x = other(x)
    if not flag:
        return rearrange(x, "b t -> t b")
    return rearrange(x, "b t d -> b (t d)")


def shadow(x: Float[Tensor, "b t"], xs):
    f = lambda x: rearrange(x, "t b -> b t")
    return [rearrange(x, "a b c -> c b a") for x in xs], f(rearrange(x, "b t -> t b"))


def matching(x: Float[Tensor, "b t"], kind: str):
    match kind:
        case "turn":
            x = rearrange(x, "b t -> t b")
            y = rearrange(x, "t b -> (t b)")
        case other:
            y = rearrange(x, "b t -> (b t)")
    return y


def trying(x: Float[Tensor, "b t"]):
    try:
        x = rearrange(x, "b t -> t b")
        raise ValueError
    except ValueError as e:
        return rearrange(x, "t b -> b t")


def looping(x: Float[Tensor, "b t"], n: int):
    for _ in range(n):
        x = rearrange(x, "b t -> t b")
        if n > 100:
            break
        x = rearrange(x, "t b -> b t")
    return rearrange(x, "b t -> (b t)")


def masked(x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]):
    chosen = x[mask]
    return reduce(chosen, "n d -> d", "mean")


def picked(x: Float[Tensor, "v d"], ids: Int[Tensor, "b t"]):
    return rearrange(x[ids], "b t d -> b (t d)")


def grow(ids: Int[Tensor, "b t"], n: int) -> Int[Tensor, "b total"]:
    while ids.shape[1] < n:
        nxt = torch.zeros(ids.shape[0], dtype=torch.long)
        ids = torch.cat([ids, rearrange(nxt, "b -> b 1")], dim=1)
    return ids


def scaled(x: Float[Tensor, "b t d"], self_scale):
    y = x * self_scale
    return y


def biased(x: Float[Tensor, "d"], table):
    y = x + table
    return rearrange(y, "n d -> d n")


class RMSNorm(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Attention(nn.Module):
    def __init__(self, d: int, h: int, kv: int):
        super().__init__()
        self.h, self.kv = h, kv
        self.norm = RMSNorm(d)
        self.q = nn.Linear(d, d)
        self.k = nn.Linear(d, d // h * kv)
        self.v = nn.Linear(d, d // h * kv)
        self.o = nn.Linear(d, d)
        self.register_buffer("mask", torch.tril(torch.ones(16, 16, dtype=torch.bool)))
        self.act = nn.GELU() if d > 3 else nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.pos: Tensor | None = None

    def split(self, x: Float[Tensor, "b n c"]):
        x = self.norm(x)
        q = rearrange(self.q(x), "b n (g k d) -> b k g n d", k=self.kv, g=self.h // self.kv)
        k = rearrange(self.k(x), "b m (k d) -> b k m d", k=self.kv)
        v = rearrange(self.v(x), "b m (k d) -> b k m d", k=self.kv)
        return q, k, v

    def scores(self, q: Float[Tensor, "b k g n d"], k: Float[Tensor, "b k m d"]) -> Float[Tensor, "b k g n m"]:
        return einsum(q, k, "b k g n d, b k m d -> b k g n m") / math.sqrt(q.shape[-1])

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        q, k, v = self.split(x)
        n = x.size(1)
        s: Float[Tensor, "b k g n m"] = self.scores(q, k)
        s = s.masked_fill(~self.mask[:n, :n], float("-inf"))
        w = s.softmax(-1)
        y = einsum(w, v, "b k g n m, b k m d -> b k g n d")
        out = self.o(rearrange(y, "b k g n d -> b n (g k d)"))
        x = x + out
        return x + self.mlp(self.act(x))


def kv_same(q: Float[Tensor, "b n d"]) -> Float[Tensor, "b n m"]:
    k = rearrange(q, "b m d -> b d m")
    return einsum(q, k, "b n d, b d m -> b n m")


def pairwise(x: Float[Tensor, "n d"]):
    d2 = (rearrange(x, "n d -> n 1 d") - rearrange(x, "m d -> 1 m d")).pow(2).sum(-1)
    return reduce(d2, "n m -> n", "min")


def unpacked(x: Float[Tensor, "b t d"]):
    b, t, d = x.shape
    z = x.view(b, t, 2, d // 2).transpose(1, 2)
    y = torch.zeros(b, t, dtype=x.dtype)
    first, *rest = rearrange(x, "b t (two d) -> two b t d", two=2)
    a, c = x.chunk(2, dim=-1)
    top = x.topk(2, dim=-1)
    vals, idx = x.max(dim=-1)
    return (
        rearrange(z, "b two t d -> b t (two d)"),
        reduce(y, "b t -> b", "sum"),
        rearrange(first, "b t d -> d t b"),
        reduce(rest[0], "b t d -> b", "sum"),
        rearrange(a * c, "b t d -> t b d"),
        reduce(top.values, "b t k -> b k", "mean"),
        reduce(vals, "b t -> t", "sum"),
        reduce(idx.float(), "b t -> t", "sum"),
        repeat(x, "b t d -> b t d n", n=3),
    )


def optional(x: Float[Tensor, "b t d"], m: Float[Tensor, "b t"] | None = None):
    if m is not None:
        x = x * m[..., None]
        m = m[:, None]
        x = x + rearrange(m, "b one t -> b t one")
    return reduce(x, "b t d -> b d", "mean")


x, m = torch.randn(2, 3, 4), torch.randn(5, 6)
use(x, m)
correlated(x[..., 0], True, lambda t: t[..., None])
correlated(x[..., 0], False, None)
early(x[..., 0], True, lambda t: t[..., None])
early(x[..., 0], False, None)
shadow(x[..., 0], [x])
matching(x[..., 0], "turn")
matching(x[..., 0], "x")
trying(x[..., 0])
looping(x[..., 0], 2)
masked(x, torch.ones(2, 3, dtype=torch.bool))
picked(torch.randn(7, 4), torch.zeros(2, 3, dtype=torch.long))
grow(torch.zeros(2, 3, dtype=torch.long), 6)
scaled(x, 2)
biased(torch.randn(4), torch.randn(5, 4))
result = Attention(8, 4, 2)(torch.randn(2, 5, 8))
kv_same(x)
pairwise(x[0])
unpacked(x)
optional(x, x[..., 0])
optional(x)
""",
    "operations without names": """
from dataclasses import dataclass
from functools import reduce
from typing import Optional, Tuple

import einops
import torch
from einops.layers.torch import Rearrange
from jaxtyping import Float, Int, Shaped, jaxtyped
from torch import Tensor, nn
from torch.nn.functional import softmax, scaled_dot_product_attention as sdpa


@dataclass
class Config:
    embed: int = 8
    heads: int = 2
    layers: int = 2
    vocab: int = 11
    context: int = 16


class CausalSelfAttention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.c_attn = nn.Linear(config.embed, 3 * config.embed)
        self.c_proj = nn.Linear(config.embed, config.embed)
        self.register_buffer(
            "bias",
            torch.tril(torch.ones(config.context, config.context)).view(1, 1, config.context, config.context),
        )

    def forward(
        self, x: Float[Tensor, "batch seq embed"], past: Optional[Tuple[Tensor, Tensor]] = None
    ) -> Float[Tensor, "batch seq embed"]:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        k = einops.rearrange(
            k, "batch seq_k (heads head_dim) -> batch heads seq_k head_dim", heads=self.config.heads
        )
        q = q.view(B, T, self.config.heads, C // self.config.heads).transpose(1, 2)
        v = v.view(B, T, self.config.heads, -1).transpose(1, 2)
        if past is not None:
            k = torch.cat([past[0], k], dim=-2)
        att = (
            einops.einsum(q, k, "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq seq_k")
            / C**0.5
        )
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        att = softmax(att, dim=-1)
        y = att @ v
        y = y + sdpa(q, k, v)
        y = einops.rearrange(y, "batch heads seq head_dim -> batch seq (heads head_dim)")
        return self.c_proj(y)


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.transformer = nn.ModuleDict(
            dict(wte=nn.Embedding(config.vocab, config.embed), wpe=nn.Embedding(config.context, config.embed))
        )
        self.blocks = nn.ModuleList([CausalSelfAttention(config) for _ in range(config.layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(config.embed) for _ in range(config.layers)])
        self.head = nn.Linear(config.embed, config.vocab, bias=False)
        self.patch = nn.Sequential(Rearrange("b (n p) -> b n p", p=2), nn.Linear(2, config.embed))
        self.cls = nn.Parameter(torch.zeros(1, 1, config.embed))
        self.table = None
        for block in self.blocks:
            block.extra = None

    def embed(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq embed"]:
        pos = torch.arange(ids.shape[1])
        return self.transformer.wte(ids) + self.transformer.wpe(pos)

    def forward(self, ids: Int[Tensor, "batch seq"], pixels: Float[Tensor, "batch pixels"] | None = None):
        x = self.embed(ids)
        if pixels is not None:
            x = self.patch(pixels)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        for norm, block in zip(self.norms, self.blocks):
            x = x + block(norm(x))
        total = reduce(lambda a, b: a + b, [x, x])
        first, rest = x[:, 0], x[:, 1:]
        pooled = einops.reduce(rest, "batch seq embed -> batch embed", "mean") + first
        stacked = einops.rearrange([pooled, first], "two batch embed -> batch two embed")
        picked = einops.rearrange(self.head(stacked), "batch two vocab -> batch (two vocab)")
        logits: Float[Tensor, "batch seq vocab"] = self.head(x)
        best = logits.argmax(-1)
        einops.rearrange(best, "batch seq -> seq batch")
        mean, std = x.mean(dim=(1, 2), keepdim=True), x.std(dim=-1, keepdim=True)
        x = (x - mean) / std
        einops.rearrange(x.mean(dim=(0, 1)), "embed -> embed")
        einops.rearrange(x.permute(2, 0, 1), "embed batch seq -> batch seq embed")
        einops.rearrange(x.unsqueeze(1).squeeze(1), "batch seq embed -> seq batch embed")
        einops.rearrange(x.flatten(1), "batch features -> features batch")
        einops.rearrange(x.T if x.ndim == 2 else x, "batch seq embed -> seq batch embed")
        b: Shaped[Tensor, "*batch embed"] = x
        b = b[..., None, :]
        einops.rearrange(b, "batch seq one embed -> batch seq (one embed)")
        self.table = einops.rearrange(x, "batch seq embed -> seq batch embed")
        einops.rearrange(self.table, "seq batch embed -> batch seq embed")
        a, c = (x, 1) if pixels is None else (x[0], 2)
        x_t: Float[Tensor, "embed batch seq"]
        x_t = x.permute(2, 0, 1)
        acc = []
        for row in x:
            acc.append(einops.rearrange(row, "seq embed -> embed seq"))
        out = torch.stack(acc)
        out2 = torch.stack([einops.rearrange(row, "seq embed -> embed seq") for row in x], dim=1)
        einops.rearrange(out2, "embed batch seq -> batch seq embed")

        def inner(x):
            return einops.rearrange(x, "batch embed seq -> batch seq embed")

        inner(out)
        w = self.head.weight
        einops.einsum(x, w, "batch seq embed, vocab embed -> batch seq vocab")
        h = nn.functional.one_hot(ids, 11).float()
        einops.einsum(h, w, "batch seq vocab, vocab embed -> batch seq embed")
        d = torch.where(ids > 3, 1.0, 0.0)
        einops.rearrange(d, "batch seq -> seq batch")
        weights, ix = x.sort(dim=-1, descending=True)
        einops.rearrange(weights[..., :2], "batch seq k -> (batch seq) k")
        x.transpose_(0, 1)
        einops.rearrange(x, "seq batch embed -> batch seq embed")
        return logits, picked


def decode(
    q: Float[Tensor, "batch heads seq head_dim"], past: Float[Tensor, "batch heads seq_k head_dim"]
) -> Float[Tensor, "batch heads seq seq_k"]:
    return q @ past.mT


def outer_add(a: Float[Tensor, "i"], b: Float[Tensor, "j"]) -> Float[Tensor, "i j"]:
    return a[:, None] + b


def reuse(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    return outer_add(x.sum(-1), y.sum(-1))


def self_reuse(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    return reuse(x, x)


def widened(x: Float[Tensor, "batch seq"], y: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch seq"]:
    return x * y + y


async def later(x: Float[Tensor, "batch seq"]) -> Float[Tensor, "seq batch"]:
    return einops.rearrange(x, "batch seq -> seq batch")


class Static:
    @staticmethod
    def f(x: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
        return einops.rearrange(x, "a b -> b a")

    @classmethod
    def g(cls, x: Float[Tensor, "a b"]):
        return einops.rearrange(cls.f(x), "b a -> a b")

    def h(self, x: Float[Tensor, "a b"]):
        return einops.rearrange(Static.f(x), "b a -> a b"), einops.rearrange(self.f(x), "b a -> a b")

    @property
    def weight(self) -> Float[Tensor, "a b"]:
        return torch.zeros(2, 3)

    def k(self):
        return einops.rearrange(self.weight, "a b -> b a")


m = Model(Config())
m(torch.zeros(3, 5, dtype=torch.long))
m(torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 10))
decode(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4))
reuse(torch.zeros(2, 3), torch.zeros(4, 3))
self_reuse(torch.zeros(2, 3))
widened(torch.zeros(2, 3), torch.zeros(2, 1))
s = Static()
s.g(torch.zeros(2, 3))
s.h(torch.zeros(2, 3))
s.k()
result = s
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
    path.write_text(HEAD + WRONG["an axis too few"][0].replace("rearrange(x", "rearrange(y"), encoding="utf-8")
    unknown = CliRunner().invoke(app, ["check", str(path), str(PACKAGE / "models/gpt2/gpt2.py")])
    assert unknown.exit_code == 0
    assert re.search(r"model\.py: 0 of 1 tensors .*\n  line 9: y\n", unknown.stdout)
    assert re.search(r"gpt2\.py: 7 of 7 tensors ", unknown.stdout)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("model.py", "x = 1\ndef (", ["model.py", "line 2"]),
        ("model.py", "%matplotlib inline", ["model.py", "line 1", "notebook"]),
        ("model.ipynb", "{}", ["model.ipynb", "jupyter nbconvert"]),
        ("", "", ["folder", "*.py"]),
    ],
)
def test_what_is_no_python_file_is_refused_with_a_way_out(
    name: str, text: str, says: list[str], tmp_path: Path
) -> None:
    if name:
        (tmp_path / name).write_text(text, encoding="utf-8")
    refused = CliRunner().invoke(app, ["check", str(tmp_path / name)])
    assert isinstance(refused.exception, ValueError)
    assert all(piece in str(refused.exception) for piece in says)


def test_a_file_without_patterns_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("\ufeffprint(1)", encoding="utf-8")
    assert "no einops pattern" in CliRunner().invoke(app, ["check", str(tmp_path / "plain.py")]).stdout
