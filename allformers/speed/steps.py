"""Compiled decoding steps: from a token to the logits of the next in one program."""

import copy
import functools
import warnings
from typing import Any, TypeVar

import torch
from einops import einsum, rearrange, reduce, repeat
from torch import Tensor, nn

from allformers.generation.decoder import Decoder
from allformers.nn.cache import Cache
from allformers.nn.shapes import unchecked
from allformers.speed.linear import MIN_WEIGHTS, can_compile, gemv, materialize

_DYNAMO_CONFIG = {"specialize_float": True, "recompile_limit": 64}
"""Dynamo's settings: constants stay constants, and each kind of batch and window may have a program of its own."""

DecoderT = TypeVar("DecoderT", bound=Decoder)


def compile_steps(model: DecoderT) -> DecoderT:
    """Compile a decoder's decoding steps, in place, and return it; prefill stays as it was.

    A whole step, from a token to the logits of the next one, becomes one program: the small operations between the
    linear layers are fused, and Python is called once a step and not once for each of them. Compilation takes some 10
    to 30 seconds at the first step; all blocks have the same code, so one is compiled for all. The program serves texts
    of any length. Batches have a program of their own, but only in small models without a router: in large ones
    `prepare`'s kernels are faster for several rows, and a router sends each row to other experts.

    A compiled model can still be trained, saved, moved, cast and copied. Where there is no compiler, a warning says so
    and the model stays as it is.

    Raises:
        ValueError: the model is not a decoder, so it takes no steps.
    """
    if not isinstance(model, Decoder):
        raise ValueError(f"{type(model).__name__} is not a decoder, so it has no steps to compile")
    if next(model.parameters()).device.type != "cpu" or can_compile():
        vars(model)["decode_step"] = CompiledSteps(model)
    return model


class CompiledSteps:
    """A decoder's `decode_step`, compiled when it is first called; a copy or a pickle of the model gets its own."""

    def __init__(self, model: Decoder) -> None:
        self.model: Any = model

    @functools.cached_property
    def compiled(self) -> Any:
        """The compiled `decode_step` of a shallow copy, whose blocks are marked as having the same code."""
        # PyTorch would trace the parsing of each pattern anew for each use.
        for function in (rearrange, reduce, repeat, einsum):
            torch._dynamo.allow_in_graph(function)
        clone = copy.copy(self.model)
        blocks = nn.ModuleList(_Region(_with_gather(block)) for block in clone.blocks)
        clone._modules = {**clone._modules, "blocks": blocks}
        del vars(clone)["decode_step"]
        return torch.compile(clone.decode_step, backend=_compile, fullgraph=True, dynamic=True)

    @functools.cached_property
    def is_small(self) -> bool:
        """True if compilation pays for batches too: all linear layers are small, and there is no router."""
        return "experts" not in self.model.config.axes and all(
            layer.weight.numel() < MIN_WEIGHTS for layer in self.model.modules() if isinstance(layer, nn.Linear)
        )

    def __call__(self, token_ids: Tensor, cache: Cache) -> Tensor:
        """Take one step; a prompt, or a batch in a large model, takes the model's own `decode_step`."""
        batch, seq = token_ids.shape
        if seq > 1 or not cache.length or (batch > 1 and not self.is_small):
            return type(self.model).decode_step(self.model, token_ids, cache)
        cache.ensure_capacity(1)
        with torch.inference_mode(), unchecked(), torch._dynamo.config.patch(_DYNAMO_CONFIG):
            return self.compiled(token_ids, cache)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledSteps":
        """Copy the model, with compiled steps of its own."""
        return CompiledSteps(copy.deepcopy(self.model, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model; the program is compiled anew."""
        return CompiledSteps, (self.model,)


def _with_gather(module: nn.Module) -> nn.Module:
    """A shallow copy of a module whose experts use `gather` instead of `dispatch`; it shares all parameters.

    A compiled program has to know all sizes beforehand, and in `dispatch` the tokens per expert depend on the text.
    """
    parts = {name: _with_gather(part) for name, part in module.named_children()}
    gather = getattr(module, "gather", None)
    if gather is None and all(part is module._modules[name] for name, part in parts.items()):
        return module
    clone = copy.copy(module)
    clone._modules = {**module._modules, **parts}
    if gather is not None:
        vars(clone)["dispatch"] = clone.gather
    return clone


class _Region(nn.Module):
    """A block as a nested region: the compiler compiles it once, and reuses the code for every layer."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    @torch.compiler.nested_compile_region
    def forward(self, *inputs: Any) -> Tensor:
        """Call the block."""
        return self.block(*inputs)


def _compile(graph: Any, inputs: Any) -> Any:
    """Compile a graph with Inductor, where products with one row are decomposed into `gemv`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of PyTorch's own modules, about one another
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.decomposition import select_decomp_table

        functions = {"mm": _mm, "addmm": _addmm, "bmm": _bmm}
        one_row: dict[Any, Any] = {getattr(torch.ops.aten, name).default: one for name, one in functions.items()}
        return compile_fx(graph, inputs, decompositions={**select_decomp_table(), **one_row})


def _mm(row: Tensor, matrix: Tensor) -> Tensor:
    """Decompose `mm` if it has one row."""
    return _addmm(matrix.new_zeros(matrix.shape[1]), row, matrix)


def _addmm(bias: Tensor, row: Tensor, matrix: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Decompose `addmm` if it has one row and no factors."""
    if row.shape[0] != 1 or beta != 1 or alpha != 1 or row.device.type != "cpu":
        return NotImplemented
    return gemv(materialize(row), rearrange(matrix, "inputs outputs -> outputs inputs"), bias)


def _bmm(rows: Tensor, matrices: Tensor) -> Tensor:
    """Decompose `bmm` if it has one row for each matrix."""
    if rows.shape[1] != 1 or rows.device.type != "cpu":
        return NotImplemented
    compute_dtype = torch.promote_types(rows.dtype, torch.float32)
    weights = rearrange(matrices, "... inputs outputs -> ... outputs inputs").to(compute_dtype)
    products = materialize(rows).to(compute_dtype) * weights
    return reduce(products, "... outputs inputs -> ... 1 outputs", "sum").to(rows.dtype)
