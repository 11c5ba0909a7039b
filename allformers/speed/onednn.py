"""A linear layer that calls oneDNN's kernel where that is the faster one.

Most of a transformer's time goes into linear layers, and for float32 on a CPU PyTorch does not always choose the
fastest kernel that it has: `allformers bench linear` shows the difference on the machine at hand. The other kernel is
oneDNN's, a part of PyTorch that `torch.compile` calls too. Here it is called directly, forwards and backwards.

`prepare` gives a model's layers this class, and `unprepare` takes it away again; parameters, names and hooks stay.
"""

import copyreg
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_MIN_MACS = 2**20
"""The fewest multiply-accumulates (MACs) for which oneDNN is called: such a call has more overhead than `F.linear`."""


class OneDNNLinear(nn.Linear):
    """`nn.Linear` with the same parameters and the same result, to rounding. Its copies and pickles are `nn.Linear`."""

    extra_attributes: tuple[str, ...] = ()
    """The attributes that are not `nn.Linear`'s, and are left out of copies and pickles."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer along the last axis: `(..., inputs)` to `(..., outputs)`."""
        weight, bias = self.weight, self.bias
        if torch.compiler.is_compiling():  # it would make a program for each side of the comparison below
            return F.linear(x, weight, bias)
        if x.numel() * self.out_features < _MIN_MACS or not _can_use_onednn(x, weight, bias):
            return F.linear(x, weight, bias)
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return _OneDNNFunction.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return onednn(x, weight, bias)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy or pickle the layer as a plain `nn.Linear`."""
        if not type(self).__module__.startswith(__package__):  # PyTorch has put a class of its own on top
            return super().__reduce_ex__(protocol)
        state = {name: value for name, value in vars(self).items() if name not in self.extra_attributes}
        return copyreg._reconstructor, (nn.Linear, object, None), state  # type: ignore[attr-defined]


def _can_use_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """True if oneDNN may be called directly: float32 on the CPU, and nothing observes or rewrites the call.

    Compilers, autocast, function transforms and dispatch modes (FLOP counters, fake tensors) want the usual operator.
    """
    return bool(
        HAS_ONEDNN
        and x.dtype is weight.dtype is torch.float32
        and x.device.type == weight.device.type == "cpu"
        and (bias is None or bias.dtype is torch.float32)
        and x.shape[-1] == weight.shape[-1]
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer with oneDNN's kernel; `weight` may be in its blocked format."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNNFunction(torch.autograd.Function):
    """Autograd function of the layer: each of the two contractions of the backward pass is a linear layer again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = _contract(grad, rearrange(weight, "outputs inputs -> inputs outputs"))
        if needs_weight:
            grad_by_output = rearrange(grad, "... outputs -> outputs (...)")
            grad_weight = _contract(grad_by_output, rearrange(x, "... inputs -> inputs (...)"))
        if needs_bias:
            grad_bias = reduce(grad, "... outputs -> outputs", "sum")
        return grad_x, grad_weight, grad_bias


def _contract(rows: Tensor, columns: Tensor) -> Tensor:
    """Matrix product `rows columnsᵀ`, differentiable again."""
    if torch.is_grad_enabled() and (rows.requires_grad or columns.requires_grad):
        return _OneDNNFunction.apply(rows, columns, None)  # type: ignore[no-untyped-call]
    return onednn(rows, columns)
