"""Make a model fast for inference: how its weights lie in memory changes, what it computes does not.

A linear layer on one row, as in decoding one text, multiplies each weight once and is done with it, so it takes as long
as it takes to read the weights. On many rows, as in reading a prompt, each weight is used again and again, and the
multiplications count. PyTorch has one kernel for both. `prepare` gives each case its own:

- one row: the contraction as it is defined, a product and a sum, compiled into one loop that reads the weights in the
  order in which they lie;
- several rows: oneDNN's kernel, on weights that were packed once into the blocks in which it reads them, and not at
  every call;
- int8 and int4: a half to an eighth of the bytes, for a little of the quality. torchao rounds the weights; they are
  turned back into floating point while they are multiplied.

`compile_steps` does the rest for decoding: all that happens between one token and the next becomes one program.

Nothing here is about a particular model, and no model knows of it. The site's page on performance says what each of
these gave.
"""

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import pack, rearrange, reduce, unpack
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from allformers.nn.shapes import checked, unchecked
from allformers.speed.onednn import HAS_ONEDNN, Linear, onednn

LAYOUTS = ("packed", "int8", "int4")
"""What `prepare` can do to the weights."""

GROUP = 32
"""Weights that share a scale in int4; in int8 those of a whole output do."""

WORTHWHILE = 2**17
"""Weights from which on a layer gains: a call of the loop takes some 10 µs more than one of `F.linear`."""

_ROUNDED_ROWS = 8
"""Rows up to which rounded weights are turned back inside the loop; for more it is better done once, beforehand."""

Model = TypeVar("Model", bound=nn.Module)


def prepare(model: Model, weights: str = "packed") -> Model:
    """Make a model faster at inference, in place, and return it.

    Args:
        model: any model of the family.
        weights: "packed" keeps the weights and adds a packed copy of those of each linear layer, which takes twice the
            memory; it is for processors, and changes nothing elsewhere. Layers too small to gain are left as they are.
            "int8" and "int4" replace the weights. Embeddings, norms and experts stay as they are in any case.

    A model with packed weights computes what it computed before, to rounding, and can still be trained, saved, moved
    and cast: a layer whose weights have changed goes the ordinary way. A rounded one can only be used.

    Raises:
        ValueError: there is no such layout, int4 does not fit a layer, or the model was rounded before.
        ImportError: torchao is needed to round, and is not installed.
    """
    if weights not in LAYOUTS:
        raise ValueError(f"weights must be one of {', '.join(LAYOUTS)}, not {weights!r}")
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    if not found:
        raise ValueError("this model has no linear layers to prepare: was it rounded before?")
    make: Callable[[nn.Linear], nn.Module] = functools.partial(RoundedLinear, kind=weights)
    if weights == "packed":
        make = PackedLinear
        found = [(parent, name, layer) for parent, name, layer in found if layer.weight.numel() >= WORTHWHILE]
    made = [(parent, name, make(layer).train(layer.training)) for parent, name, layer in found]
    for parent, name, layer in made:  # all or none
        setattr(parent, name, layer)
    return model


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


class PackedLinear(Linear):
    """A linear layer with the same parameters, a packed copy of its weights, and a loop of its own for one row.

    `Linear` serves gradients, compilers, and weights that have changed since.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self._lay_out()

    def _lay_out(self) -> None:
        weight = self.weight.detach()
        self.packed = pack_weight(weight)
        shift = weight.new_zeros(self.out_features) if self.bias is None else self.bias.detach()
        self.looped = (weight.contiguous(), shift) if weight.device.type == "cpu" and can_compile() else None
        self.prepared_from = self._state()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along: the layer itself. What is packed cannot be copied."""
        return {**vars(self), "packed": None, "looped": None, "prepared_from": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Lay the weights of a copy out anew."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lay_out()

    def _state(self) -> tuple[object, ...]:
        """What changes when a parameter does: where it lies, and how often it has been written to."""
        return tuple((one.data_ptr(), None if one.is_inference() else one._version) for one in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer along the last axis: `(..., inputs)` to `(..., outputs)`."""
        if (
            torch.compiler.is_compiling()
            or (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            or torch.is_autocast_enabled(x.device.type)
            or x.dtype is not self.weight.dtype
            or self._state() != self.prepared_from
        ):
            return super().forward(x)
        if x.numel() == self.in_features:
            return super().forward(x) if self.looped is None else in_a_loop(multiply_row, x, *self.looped)
        return super().forward(x) if self.packed is None else onednn(x, self.packed, self.bias)


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
