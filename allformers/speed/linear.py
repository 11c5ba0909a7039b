"""Make a model fast: which kernels its linear layers call, and how their weights lie in memory.

The models use `nn.Linear`. `prepare` gives each of these layers another class, and what the model computes stays the
same, to rounding:

- "plain": the same weights; large products in float32 go to oneDNN's kernel, forwards and backwards.

For inference there is more. A linear layer on one row, as in decoding one text, multiplies each weight once and is done
with it, so it takes as long as it takes to read the weights. On many rows, as in reading a prompt, each weight is used
again and again, and the multiplications count. PyTorch has one kernel for both:

- "packed": one row is the contraction as it is defined, a product and a sum, compiled into one loop that reads the
  weights in the order in which they lie. Several rows go to oneDNN's kernel, on weights that were packed once into the
  blocks in which it reads them, and not at every call;
- "int8" and "int4": a half to an eighth of the bytes, for a little of the quality. torchao rounds the weights; they are
  turned back into floating point while they are multiplied.

`compile_steps` does the rest for decoding: all that happens between one token and the next becomes one program.

Nothing here is about a particular model, and no model knows of it. The site's page on performance says what each of
these gave.
"""

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from einops import pack, rearrange, reduce, unpack
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from allformers.nn.shapes import checked, unchecked
from allformers.speed.onednn import HAS_ONEDNN, OneDNNLinear, onednn

LAYOUTS = ("plain", "packed", "int8", "int4")
"""What `prepare` can do to the weights."""

GROUP = 32
"""Weights that share a scale in int4; in int8 those of a whole output do."""

WORTHWHILE = 2**17
"""Weights from which on a layer gains: a call of the loop takes some 10 µs more than one of `F.linear`."""

_ROUNDED_ROWS = 8
"""Rows up to which rounded weights are turned back inside the loop; for more it is better done once, beforehand."""

Model = TypeVar("Model", bound=nn.Module)


def prepare(model: Model, weights: str = "plain", *, training: bool = False) -> Model:
    """Make a model faster, in place, and return it.

    Args:
        model: any model of the family, or any other module.
        weights: "plain" keeps the weights as they are. "packed" adds a packed copy of those of each linear layer, which
            takes twice the memory; layers too small to gain get none. Both are for processors, and change nothing
            elsewhere. "int8" and "int4" replace the weights. Embeddings, norms and experts stay as they are in any
            case.
        training: the model is to be trained. Its weights have to be plain for that: a packed copy is out of date after
            the first step, and rounded weights cannot learn.

    What the model was prepared for before does not matter, unless its weights were rounded. Its parameters stay the
    same objects with the same names, so an optimizer made before goes on, and a checkpoint is the same file. It can be
    saved, moved, cast and trained; a layer whose weights have changed since they were packed goes the ordinary way.
    Copies and pickles of the model are not prepared. A rounded model can only be used.

    Raises:
        ValueError: there is no such layout, it is none to train in, int4 does not fit a layer, or the model's weights
            were rounded otherwise.
        ImportError: torchao is needed to round, and is not installed.
    """
    if weights not in LAYOUTS:
        raise ValueError(f"weights must be one of {', '.join(LAYOUTS)}, not {weights!r}")
    if training and weights != "plain":
        raise ValueError(f"a model is trained with plain weights, not {weights!r}")
    if _rounded(model) == {weights}:
        return model
    _refuse_rounded(model)
    layers: list[Any] = [layer for layer in model.modules() if type(layer) in {nn.Linear, OneDNNLinear, PackedLinear}]
    if weights in {"int8", "int4"}:
        _replace(model, {layer: RoundedLinear(layer, weights).train(layer.training) for layer in layers})
        return model
    wanted = [layer for layer in layers if weights == "packed" and layer.weight.numel() >= WORTHWHILE]
    laid_out = {layer: _lay_out(layer) for layer in wanted}
    for layer in layers:  # nothing can fail from here on: all or none
        _become(layer, PackedLinear if layer in laid_out else OneDNNLinear)
    for layer, weight in laid_out.items():
        layer.laid_out = weight
    return model


def unprepare(model: Model) -> Model:
    """Give a model its plain `nn.Linear` layers back, in place, and return it; the parameters stay the same objects.

    Raises:
        ValueError: its weights were rounded, and what was rounded away is gone.
    """
    _refuse_rounded(model)
    for layer in model.modules():
        if type(layer) in {OneDNNLinear, PackedLinear}:
            _become(layer, nn.Linear)
    return model


def _rounded(model: nn.Module) -> set[str]:
    """What the weights of a model were rounded to, if they were."""
    return {layer.kind for layer in model.modules() if isinstance(layer, RoundedLinear)}


def _refuse_rounded(model: nn.Module) -> None:
    """Raise the error of `prepare` and `unprepare` for a model whose weights were rounded."""
    if kinds := _rounded(model):
        raise ValueError(f"this model's weights were rounded to {', '.join(kinds)}, for good: load it again")


def _become(layer: Any, kind: type[nn.Linear]) -> None:
    """Make a linear layer one of another class; parameters, names, ties and hooks are the module's, and stay."""
    for name in getattr(layer, "added", ()):
        vars(layer).pop(name, None)
    layer.__class__ = kind


def _replace(model: nn.Module, made: "dict[nn.Linear, RoundedLinear]") -> None:
    """Put modules in the places of others.

    Raises:
        ValueError: the model itself is to be replaced.
    """
    if model in made:
        raise ValueError("a linear layer by itself cannot be rounded in place: prepare the model that it is part of")
    for parent in [*model.modules()]:
        for name, child in parent._modules.items():
            if child in made:
                setattr(parent, name, made[child])


@checked
def multiply_row(
    x: Float[Tensor, "... inputs"], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, "outputs"]
) -> Float[Tensor, "... outputs"]:
    """A linear layer, written as what it is; compiled, it is one loop over the weights. In float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    products = rearrange(x.to(wide), "... inputs -> ... 1 inputs") * weight.to(wide)
    return (reduce(products, "... outputs inputs -> ... outputs", "sum") + bias).to(x.dtype)


@checked
def multiply_int8(
    x: Float[Tensor, "... inputs"],
    weight: Int8[Tensor, "outputs inputs"],
    scale: Float[Tensor, "outputs"],
    bias: Float[Tensor, "outputs"],
) -> Float[Tensor, "... outputs"]:
    """The same from whole numbers: each output has a scale."""
    products = rearrange(x.to(scale.dtype), "... inputs -> ... 1 inputs") * weight.to(scale.dtype)
    return (reduce(products, "... outputs inputs -> ... outputs", "sum") * scale + bias).to(x.dtype)


@checked
def multiply_int4(
    x: Float[Tensor, "... inputs"],
    numbers: UInt8[Tensor, "outputs groups half"],
    scale: Float[Tensor, "outputs groups"],
    bias: Float[Tensor, "outputs"],
) -> Float[Tensor, "... outputs"]:
    """The same from two whole numbers a byte: each group of `GROUP` inputs has a scale at each output."""
    first, second = rearrange(
        x.to(scale.dtype), "... (groups nibble half) -> nibble ... 1 groups half", nibble=2, half=GROUP // 2
    )
    low, high = _halves(numbers, scale.dtype)
    products = (first * low + second * high) * rearrange(scale, "outputs groups -> outputs groups 1")
    return (reduce(products, "... outputs groups half -> ... outputs", "sum") + bias).to(x.dtype)


@checked
def _halves(
    numbers: UInt8[Tensor, "outputs groups half"], dtype: torch.dtype
) -> tuple[Float[Tensor, "outputs groups half"], Float[Tensor, "outputs groups half"]]:
    """The two whole numbers of each byte, from -8 to 7."""
    return (numbers & 15).to(dtype) - 8, (numbers >> 4).to(dtype) - 8


def in_a_loop(function: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """What a function gives, by one loop in machine code.

    It is compiled once for all tensors of the same shapes and dtypes, and for the number of threads.
    """
    given = tuple(one.contiguous() for one in given)
    return _loop(function, torch.get_num_threads(), *((one.shape, one.dtype) for one in given))(*given)


@functools.cache
def _loop(function: Callable[..., Tensor], threads: int, *kinds: tuple[torch.Size, torch.dtype]) -> Any:
    return _lower(function, *(torch.zeros(shape, dtype=dtype) for shape, dtype in kinds))


def _lower(function: Callable[..., Tensor], *given: Tensor) -> Any:
    """What PyTorch's compiler makes of a function by itself: a call costs a quarter of one to `torch.compile`'s."""
    from torch._inductor import compile as lower
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad(), unchecked(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of PyTorch's own modules, about one another
        return lower(make_fx(function)(*given), list(given))


@functools.cache
def can_compile() -> bool:
    """Whether anything can be compiled here; it takes a C++ compiler."""
    try:
        _lower(multiply_row, torch.ones(1, 32), torch.ones(48, 32), torch.ones(48))
    except Exception as error:
        warnings.warn(
            f"nothing can be compiled here, so all goes the ordinary way: {str(error).splitlines()[0]}",
            stacklevel=2,
        )
        return False
    return True


@checked
def pack_weight(weight: Float[Tensor, "outputs inputs"]) -> Tensor | None:
    """Weights in the blocks in which oneDNN's kernel reads them, or None where it does not serve."""
    if not HAS_ONEDNN or weight.device.type != "cpu" or weight.dtype not in {torch.float32, torch.bfloat16}:
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight)


class LaidOut(NamedTuple):
    """A linear layer's weights as kernels read them.

    Attributes:
        packed: for oneDNN, if it serves.
        looped: weight and bias for the loop over one row, if it can be compiled.
        state: the parameters' own, from which these were made; see `_state`.
    """

    packed: Tensor | None
    looped: tuple[Tensor, Tensor] | None
    state: tuple[object, ...]


def _lay_out(layer: nn.Linear) -> LaidOut:
    if isinstance(layer, PackedLinear) and layer.laid_out.state == _state(layer):
        return layer.laid_out
    weight = layer.weight.detach()
    shift = weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
    looped = (weight.contiguous(), shift) if weight.device.type == "cpu" and can_compile() else None
    return LaidOut(pack_weight(weight), looped, _state(layer))


def _state(layer: nn.Linear) -> tuple[object, ...]:
    """What changes when a parameter does: where it lies, and how often it has been written to."""
    given = (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)
    return tuple((one.data_ptr(), None if one.is_inference() else one._version) for one in given)


class PackedLinear(OneDNNLinear):
    """A linear layer with the same parameters, a packed copy of its weights, and a loop of its own for one row.

    `OneDNNLinear` serves gradients, compilers, and weights that have changed since.
    """

    laid_out: LaidOut
    added = ("laid_out",)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer along the last axis: `(..., inputs)` to `(..., outputs)`."""
        if (
            torch.compiler.is_compiling()
            or (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            or torch.is_autocast_enabled(x.device.type)
            or x.dtype is not self.weight.dtype
            or _state(self) != self.laid_out.state
        ):
            return super().forward(x)
        packed, looped, _ = self.laid_out
        if x.numel() == self.in_features:
            return super().forward(x) if looped is None else in_a_loop(multiply_row, x, *looped)
        return super().forward(x) if packed is None else onednn(x, packed, self.bias)


class RoundedLinear(nn.Module):
    """A linear layer whose weights are whole numbers of eight or four bits, times a scale.

    Raises:
        ValueError: `kind` is "int4", and the layer's inputs do not divide into groups of `GROUP`.
        ImportError: torchao is not installed.
    """

    numbers: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kind = layer.in_features, layer.out_features, kind
        weight = layer.weight.detach()
        numbers, scale = _round(weight, kind)
        wide = torch.promote_types(weight.dtype, torch.float32)
        if kind == "int4":
            first, second = rearrange(
                (numbers + 8).to(torch.uint8),
                "outputs (groups nibble half) -> nibble outputs groups half",
                nibble=2,
                half=GROUP // 2,
            )
            numbers = (first | (second << 4)).contiguous()
        else:
            scale = rearrange(scale, "outputs 1 -> outputs")
        bias = weight.new_zeros(self.out_features) if layer.bias is None else layer.bias.detach()
        self.register_buffer("numbers", numbers)
        self.register_buffer("scale", scale.to(wide))
        self.register_buffer("bias", bias.to(wide))
        self.looped = weight.device.type == "cpu" and numbers.numel() >= WORTHWHILE and can_compile()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer along the last axis: `(..., inputs)` to `(..., outputs)`."""
        count = x.numel() // self.in_features
        if not 0 < count <= _ROUNDED_ROWS:
            return F.linear(x, self.dequantised().to(x.dtype), self.bias.to(x.dtype))
        multiply: Any = multiply_int8 if self.kind == "int8" else multiply_int4
        held = (self.numbers, self.scale, self.bias)
        if torch.compiler.is_compiling():
            return multiply(written_down(x), *held)
        if not self.looped:
            return multiply(x, *held)
        if count == 1:
            return in_a_loop(multiply, x, *held)
        rows, leading = pack([x], "* inputs")
        made = [in_a_loop(multiply, row, *held) for row in rows]
        (result,) = unpack(rearrange(made, "rows outputs -> rows outputs"), leading, "* outputs")
        return result

    def dequantised(self) -> Tensor:
        """The weights as floating-point numbers again: `outputs inputs`."""
        if self.kind == "int8":
            return self.numbers.to(self.scale.dtype) * rearrange(self.scale, "outputs -> outputs 1")
        scale = rearrange(self.scale, "outputs groups -> outputs groups 1")
        scaled = [half * scale for half in _halves(self.numbers, scale.dtype)]
        return rearrange(scaled, "nibble outputs groups half -> outputs (groups nibble half)")


def written_down(x: Tensor) -> Tensor:
    """The same numbers in a place of their own; the compiler would compute them anew for every output."""
    return x.as_strided(x.shape, x.stride())


def quiet_torchao() -> None:
    """Keep to itself what importing torchao would say: which of its kernels, none of them used, do not load here."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


@checked
def _round(
    weight: Float[Tensor, "outputs inputs"], kind: str
) -> tuple[Int8[Tensor, "outputs inputs"], Float[Tensor, "outputs groups"]]:
    """Whole numbers and their scales, symmetric about zero, as torchao chooses them."""
    if kind == "int4" and weight.shape[1] % GROUP:
        raise ValueError(
            f"int4 takes inputs in groups of {GROUP}; a layer of this model has {weight.shape[1]}: use int8"
        )
    quiet_torchao()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao import quantization
    except ImportError as error:
        raise ImportError('int8 and int4 need torchao: pip install "allformers[quantise]"') from error
    config: Any = (
        quantization.Int8WeightOnlyConfig(granularity=quantization.PerRow())
        if kind == "int8"
        else quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]
            granularity=quantization.PerGroup(GROUP),
        )
    )
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    quantization.quantize_(layer, config)
    rounded: Any = layer.weight
    return rounded.qdata, rounded.scale
