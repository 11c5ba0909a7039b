"""What operations do to axes is what PyTorch does: each answer is compared with the shapes of a real result."""

import ast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allformers.inspection.declarations import File
from allformers.inspection.follow import Follower
from allformers.inspection.operations import Layer, Several, is_open

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "1": 1}

TENSORS = {"x": ("a", "b", "c"), "y": ("b", "c"), "one": ("a", "1", "c"), "square": ("c", "c"), "w": ("d", "c")}

LAYERS = {"linear": Layer("Linear"), "norm": Layer("Identity"), "embedding": Layer("Embedding")}

MODULES = {"linear": nn.Linear(4, 7), "norm": nn.LayerNorm(4), "embedding": nn.Embedding(9, 6)}

EXPRESSIONS = """
x.float() | F.gelu(x) | torch.exp(x) | x.softmax(dim=-1) | F.softmax(x, -1) | torch.zeros_like(x) | x.cumsum(1)
x.sum() | x.sum(-1) | x.mean(dim=1) | x.mean(1, keepdim=True) | x.sum((0, 2)) | x.amax(dim=(1, 2), keepdim=True)
x.mean(axis=-1) | torch.sum(x, 0) | x.argmax(-1) | x.max(dim=1) | x.max(-1).values | x.var(dim=2) | x.logsumexp(-1)
x.topk(2, dim=1) | x.topk(2).indices | x.sort(dim=0) | x.argsort(-1) | x.gather(1, x.argmax(1, keepdim=True))
x.transpose(1, 2) | x.transpose(-1, 0) | x.permute(2, 0, 1) | x.permute((1, 0, 2)) | y.T | x.mT | y.t()
x.unsqueeze(0) | x.unsqueeze(-1) | x.unsqueeze(1) | x.unsqueeze(-2) | one.squeeze(1) | one.squeeze(-2)
x.view(2, 3, 2, 2) | x.reshape(6, 4) | x.flatten() | x.flatten(1) | x.flatten(0, 1) | x.expand_as(x)
x[0] | x[:, 0] | x[..., 0] | x[:, None] | x[..., None, :] | x[:, 1:] | x[..., :2, :] | x[0, ..., 1] | x[-1, :, None]
x[torch.arange(2)] | x[:, torch.zeros(5, dtype=torch.long)] | x[:, x[0, :, 0] > 0] | x[x[:, 0, 0] > -9]
x + y | y * x | x / 2 | 1 - x | x + one | one * x | x < y | -x | x ** 2 | x == 0 | torch.maximum(x, y) | x.mul(y)
x.masked_fill(x > 0, 0.0) | torch.where(x > 0, x, 0.0) | torch.where(y > 0, x, one) | x + y[:, None, None]
x @ square | x @ w.T | torch.matmul(x, square) | F.linear(x, w) | x[0] @ square | x.bmm(x.mT)
torch.cat([x, x], dim=1) | torch.cat([x, one], 1) | torch.stack([x, x]) | torch.stack([y, y], dim=-1)
torch.stack((y, y), 1)
x.chunk(2, dim=-1)[0] | x.split(1, 1)[0] | x.unbind(1)[0] | x.narrow(1, 0, 2) | x.select(1, 0)
x.index_select(0, torch.arange(1))
torch.zeros(2, 3) | torch.ones((4, 5)) | torch.full((2, 2), 1.0) | x.new_zeros(3) | torch.arange(7) | torch.eye(3)
torch.tensor([[1, 2], [3, 4]]) | torch.tensor(1.0) | torch.randint(3, (2, 5)) | torch.outer(y[0], y[1])
torch.ones(3, 3).tril() | F.one_hot(torch.arange(3)) | F.embedding(torch.arange(3), w)
F.scaled_dot_product_attention(x, x, x)
linear(x) | linear(y) | norm(x) | embedding(torch.arange(3)) | linear.weight | embedding.weight | linear.bias
x.abs().sum(-1).sqrt() | x.repeat_interleave(2, dim=1) | x.clamp(min=0) | x.type_as(y) | x.tril() | x.flip(0)
x.std(-1) | x.std(-1, keepdim=True) | torch.amax(x, 1) | x.count_nonzero(0) | x.median(dim=0).values | x.all(-1)
"""

EVERY = [one.strip() for line in EXPRESSIONS.strip().splitlines() for one in line.split("|")]


@pytest.mark.parametrize("expression", EVERY)
def test_the_axes_of_a_result_have_the_sizes_that_pytorch_gives(expression: str) -> None:
    follower = Follower(File("import torch\nimport torch.nn.functional as F\n"))
    follower.axes |= TENSORS | LAYERS
    inferred = follower.infer(ast.parse(expression, mode="eval").body)
    tensors = {name: torch.randn([SIZES[axis] for axis in axes]) for name, axes in TENSORS.items()}
    with torch.no_grad():
        result = eval(expression, {"torch": torch, "F": F, **MODULES, **tensors})
    pairs = [(inferred, result)]
    if isinstance(inferred, Several):
        pairs = list(zip(inferred.parts, result, strict=True))
    for axes, value in pairs:
        assert isinstance(axes, tuple), f"{expression} is unknown"
        assert not is_open(axes)
        assert len(axes) == value.ndim, axes
        assert all(SIZES.get(axis, size) == size for axis, size in zip(axes, value.shape, strict=True)), axes


@pytest.mark.parametrize(
    "expression",
    [
        "unknown(x)",
        "x.view(*shape)",
        "x[i]",
        "x.sum(dim)",
        "x.transpose(i, j)",
        "torch.unknown(x)",
        "x[x > 0]",
        "x.squeeze()",
    ],
)
def test_a_result_that_depends_on_what_is_unknown_is_unknown(expression: str) -> None:
    follower = Follower(File("import torch\n"))
    follower.axes |= TENSORS
    assert follower.infer(ast.parse(expression, mode="eval").body) is None
