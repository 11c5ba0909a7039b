"""A decoder's step, from a token to the logits of the next, compiled into one program."""

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
from allformers.speed.linear import WORTHWHILE, can_compile, multiply_row, written_down

_DYNAMO = {"specialize_float": True, "recompile_limit": 64}
"""While steps are compiled: constants stay constants, and there may be a program for each kind of batch and window."""

Writer = TypeVar("Writer", bound=Decoder)


def compile_steps(model: Writer) -> Writer:
    """Have a decoder's steps compiled, and return it; prompts are read as before.

    All that happens between a token and the logits of the next one becomes one program: the small operations between
    the linear layers are fused, and Python is asked once a step and not for each of them. Compiling takes some 10 to 30
    seconds at the first step; blocks are alike, so one is compiled for all. The program serves texts of any length. For
    several texts at once there is another, but only in small models without a router: where there is much to multiply,
    several rows are multiplied faster by `prepare`'s kernels, and a router sends them different ways.

    A compiled model can still be trained, saved, moved, cast and copied. Where there is no compiler, a warning says so
    and the model stays as it is.

    Raises:
        ValueError: the model does not write, so it takes no steps.
    """
    if not isinstance(model, Decoder):
        raise ValueError(f"{type(model).__name__} does not write, so there are no steps to compile")
    if next(model.parameters()).device.type != "cpu" or can_compile():
        vars(model)["decode_step"] = CompiledSteps(model)
    return model


class CompiledSteps:
    """A decoder's `decode_step`, compiled when it is first called; a copy or a pickle of the model gets its own."""

    def __init__(self, model: Decoder) -> None:
        self.model: Any = model

    @functools.cached_property
    def compiled(self) -> Any:
        """What is compiled: the same parts in another shell, in which blocks are marked as being alike."""
        # PyTorch would trace the parsing of each pattern anew for each use.
        for function in (rearrange, reduce, repeat, einsum):
            torch._dynamo.allow_in_graph(function)
        shell = copy.copy(self.model)
        blocks = nn.ModuleList(_Region(_gathering(block)) for block in shell.blocks)
        shell._modules = {**shell._modules, "blocks": blocks}
        del vars(shell)["decode_step"]
        return torch.compile(shell.decode_step, backend=_compile, fullgraph=True, dynamic=True)

    @functools.cached_property
    def is_small(self) -> bool:
        """Whether several rows are better compiled: there is little to multiply, and all of them go the same way."""
        return "experts" not in self.model.config.axes and all(
            layer.weight.numel() < WORTHWHILE for layer in self.model.modules() if isinstance(layer, nn.Linear)
        )

    def __call__(self, token_ids: Tensor, cache: Cache) -> Tensor:
        """Take one step; a prompt goes the ordinary way."""
        batch, seq = token_ids.shape
        if seq > 1 or not cache.length or (batch > 1 and not self.is_small):
            return type(self.model).decode_step(self.model, token_ids, cache)
        cache.ensure_capacity(1)
        with torch.inference_mode(), unchecked(), torch._dynamo.config.patch(_DYNAMO):
            return self.compiled(token_ids, cache)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledSteps":
        """For a copy of the model."""
        return CompiledSteps(copy.deepcopy(self.model, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """What a pickle takes along: the model."""
        return CompiledSteps, (self.model,)


def _gathering(module: nn.Module) -> nn.Module:
    """A module with `gather` in the place of `dispatch` in its experts; it shares all parameters with the original.

    A program has to know all sizes beforehand, and `dispatch` does not: an expert's tokens depend on the text.
    """
    parts = {name: _gathering(part) for name, part in module.named_children()}
    gather = getattr(module, "gather", None)
    if gather is None and all(part is module._modules[name] for name, part in parts.items()):
        return module
    shell = copy.copy(module)
    shell._modules = {**module._modules, **parts}
    if gather is not None:
        vars(shell)["dispatch"] = shell.gather
    return shell


class _Region(nn.Module):
    """A block as the compiler is to see it: something that comes again and again."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    @torch.compiler.nested_compile_region
    def forward(self, *given: Any) -> Tensor:
        """What the block makes of it."""
        return self.block(*given)


def _compile(graph: Any, given: Any) -> Any:
    """PyTorch's compiler, told that a product with one row is what `multiply_row` says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of PyTorch's own modules, about one another
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.decomposition import select_decomp_table

        rewritten = {"mm": _row_times_matrix, "addmm": _row_times_matrix_plus, "bmm": _rows_times_matrices}
        rows: dict[Any, Any] = {getattr(torch.ops.aten, name).default: function for name, function in rewritten.items()}
        return compile_fx(graph, given, decompositions={**select_decomp_table(), **rows})


def _row_times_matrix(row: Tensor, matrix: Tensor) -> Tensor:
    """`mm`, if it is of one row."""
    return _row_times_matrix_plus(matrix.new_zeros(matrix.shape[1]), row, matrix)


def _row_times_matrix_plus(shift: Tensor, row: Tensor, matrix: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`addmm`, if it is of one row."""
    if row.shape[0] != 1 or beta != 1 or alpha != 1 or row.device.type != "cpu":
        return NotImplemented
    return multiply_row(written_down(row), rearrange(matrix, "inputs outputs -> outputs inputs"), shift)


def _rows_times_matrices(rows: Tensor, matrices: Tensor) -> Tensor:
    """`bmm`, if it is of one row with each matrix."""
    if rows.shape[1] != 1 or rows.device.type != "cpu":
        return NotImplemented
    wide = torch.promote_types(rows.dtype, torch.float32)
    products = written_down(rows).to(wide) * rearrange(matrices, "... inputs outputs -> ... outputs inputs").to(wide)
    return reduce(products, "... outputs inputs -> ... 1 outputs", "sum").to(rows.dtype)
