"""A linear layer by oneDNN equals PyTorch's, values and derivatives, whichever kernel computes it."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from allformers.speed import onednn as module
from allformers.speed.onednn import OneDNNLinear

needs_onednn = pytest.mark.skipif(not module.HAS_ONEDNN, reason="this build of PyTorch has no oneDNN")

SMALL, LARGE = (3, 7, 5), (64, 150, 140)
"""Rows, inputs and outputs on the two sides of the size from which on oneDNN is called."""


@pytest.fixture
def direct_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What oneDNN is called with directly."""
    calls: list[Tensor] = []
    original = module.onednn

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(x)
        return original(x, weight, bias)

    monkeypatch.setattr(module, "onednn", spy)
    return calls


def close(ours: Tensor, theirs: Tensor, bar: float = 2e-6) -> bool:
    return bool((ours - theirs).abs().max() <= bar * theirs.abs().max())


@needs_onednn
def test_large_products_of_float32_take_the_direct_way_and_small_ones_do_not(direct_calls: list[Tensor]) -> None:
    for (rows, inputs, outputs), expected in ((SMALL, 0), (LARGE, 1)):
        OneDNNLinear(inputs, outputs)(torch.randn(rows, inputs))
        assert len(direct_calls) == expected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [SMALL, LARGE])
@pytest.mark.parametrize("leading", [(), (1,), (2, 3)])
def test_values_and_gradients_are_pytorchs(leading: tuple[int, ...], sizes: tuple[int, int, int], bias: bool) -> None:
    rows, inputs, outputs = sizes
    ours, theirs = OneDNNLinear(inputs, outputs, bias=bias), nn.Linear(inputs, outputs, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(*leading, rows, inputs)
    grad = torch.randn(*leading, rows, outputs)
    results = []
    for layer in (ours, theirs):
        entering = x.clone().requires_grad_()
        y = layer(entering)
        y.backward(grad)
        results.append([y, entering.grad, *(parameter.grad for parameter in layer.parameters())])
    assert all(close(one, other) for one, other in zip(*results, strict=True))


def test_one_row_without_a_batch_and_inputs_that_do_not_lie_in_a_row() -> None:
    layer = OneDNNLinear(1200, 1000)
    for x in (
        torch.randn(1200),
        torch.randn(1200, 8).T,
        torch.randn(4, 2400)[:, ::2],
        torch.randn(1, 1200).expand(6, 1200),
    ):
        assert close(layer(x), F.linear(x, layer.weight, layer.bias))


@needs_onednn
def test_only_the_derivatives_asked_for_are_computed(direct_calls: list[Tensor]) -> None:
    rows, inputs, outputs = LARGE
    layer = OneDNNLinear(inputs, outputs)
    layer.weight.requires_grad_(False)
    x = torch.randn(rows, inputs, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert close(x.grad, layer.weight.sum(0).expand(rows, inputs), 1e-5)
    assert len(direct_calls) == 2  # forwards, and the derivative of x
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_the_second_derivative_is_pytorchs() -> None:
    layer = OneDNNLinear(150, 140)
    x = torch.randn(64, 150, requires_grad=True)
    seconds = []
    for apply in (layer, lambda x: F.linear(x, layer.weight, layer.bias)):
        (first,) = torch.autograd.grad(apply(x).pow(3).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.pow(2).sum(), layer.weight)[0])
    assert close(seconds[0], seconds[1], 1e-5)


def test_whatever_rewrites_the_call_gets_the_usual_operator(direct_calls: list[Tensor]) -> None:
    rows, inputs, outputs = LARGE
    layer, x = OneDNNLinear(inputs, outputs), torch.randn(rows, inputs)
    expected = F.linear(x, layer.weight, layer.bias)
    assert close(torch.func.vmap(layer)(x), expected)
    assert close(torch.func.grad(lambda x: layer(x).sum())(x), layer.weight.sum(0).expand(rows, inputs), 1e-5)
    assert close(torch.compile(layer, fullgraph=True, backend="eager")(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * rows * inputs * outputs
    assert layer.to("meta")(x.to("meta")).shape == (rows, outputs)
    assert not direct_calls


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_to_pytorch(dtype: torch.dtype, direct_calls: list[Tensor]) -> None:
    rows, inputs, outputs = LARGE
    layer, x = OneDNNLinear(inputs, outputs).to(dtype), torch.randn(rows, inputs, dtype=dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not direct_calls


@pytest.mark.parametrize("sizes", [SMALL, LARGE])
def test_a_wrong_width_is_refused(sizes: tuple[int, int, int]) -> None:
    rows, inputs, outputs = sizes
    with pytest.raises(RuntimeError, match=str(inputs + 1)):
        OneDNNLinear(inputs, outputs)(torch.randn(rows, inputs + 1))
