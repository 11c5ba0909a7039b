"""Inference optimisation of linear layers: faster kernels, packed weights, weight-only quantization.

The models use `nn.Linear`. `prepare` gives each of these layers another class, and what the model computes stays the
same, to rounding:

- "plain": the same weights; large products in float32 go to oneDNN's kernel, forwards and backwards.

For inference there is more. A linear layer on one row, as in decoding one text, is a matrix-vector product (GEMV): it
uses each weight once, so it is bound by memory bandwidth. On many rows, as in prefill, it is a matrix product (GEMM):
each weight is used again and again, so it is bound by arithmetic. PyTorch has one kernel for both:

- "packed": one row is the contraction as it is defined, a product and a sum, compiled into one loop that reads the
  weights in the order of memory. Several rows go to oneDNN's kernel, on weights that were packed once into the blocks
  in which it reads them, and not at every call;
- "int8" and "int4": weight-only quantization, a half to a sixth of the bytes, for a little of the quality. (With
  the float32 scale of every 32 weights, int4 takes 5 bits a weight.) torchao quantizes the weights; they are
  dequantized while they are multiplied.

`compile_steps` does the rest for decoding: a whole step, from one token to the next, becomes one program.

Nothing here is about a particular model, and no model knows of it. The site's page on performance says how much each of
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

WEIGHT_FORMATS = ("plain", "packed", "int8", "int4")
"""The formats of the weights that `prepare` makes."""

GROUP_SIZE = 32
"""Weights that share a scale in int4; in int8 all weights of an output share one."""

MIN_WEIGHTS = 2**17
"""The smallest layer that is packed, in weights: a call of the compiled loop takes some 10 µs more than `F.linear`."""

_MAX_GEMV_ROWS = 8
"""The most rows for which weights are dequantized inside the loop; for more it is cheaper to do it once, beforehand."""

Model = TypeVar("Model", bound=nn.Module)


def prepare(model: Model, weights: str = "plain", *, training: bool = False) -> Model:
    """Optimise the linear layers of a model, in place, and return it.

    Args:
        model: any model of the family, or any other module.
        weights: "plain" keeps the weights as they are. "packed" adds a packed copy of those of each linear layer, which
            takes twice the memory; layers too small to gain get none. Both are for CPUs, and change nothing
            elsewhere. "int8" and "int4" replace the weights. Embeddings, norms and experts stay as they are in any
            case.
        training: the model is to be trained. Its weights have to be plain for that: a packed copy is out of date after
            the first step, and quantized weights cannot learn.

    An earlier preparation does not matter, unless it quantized the weights. The parameters stay the same objects with
    the same names, so an optimizer made before goes on, and a checkpoint is the same file. The model can be saved,
    moved, cast and trained; a layer whose weights have changed since they were packed uses `OneDNNLinear`. Copies and
    pickles of the model are not prepared. A quantized model can only be used; to save it is refused.

    Raises:
        ValueError: there is no such format, it does not allow training, int4 does not fit a layer, or the model's
            weights were quantized to another format.
        ImportError: quantization needs torchao, and it is not installed.
    """
    if weights not in WEIGHT_FORMATS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHT_FORMATS)}, not {weights!r}")
    if training and weights != "plain":
        raise ValueError(f"a model is trained with plain weights, not {weights!r}")
    if _quantization(model) == {weights}:
        return model
    _refuse_quantized(model)
    layers: list[Any] = [layer for layer in model.modules() if type(layer) in {nn.Linear, OneDNNLinear, PackedLinear}]
    if weights in {"int8", "int4"}:
        _replace_modules(model, {layer: QuantizedLinear(layer, weights).train(layer.training) for layer in layers})
        return model
    large = [layer for layer in layers if weights == "packed" and layer.weight.numel() >= MIN_WEIGHTS]
    packed = {layer: _pack(layer) for layer in large}
    for layer in layers:  # nothing can fail from here on: all or none
        _set_class(layer, PackedLinear if layer in packed else OneDNNLinear)
    for layer, packed_weights in packed.items():
        layer.packed_weights = packed_weights
    return model


def unprepare(model: Model) -> Model:
    """Undo `prepare` in place and return the model: its layers are `nn.Linear` again, with the same parameters.

    Raises:
        ValueError: the weights were quantized, which cannot be undone.
    """
    _refuse_quantized(model)
    for layer in model.modules():
        if type(layer) in {OneDNNLinear, PackedLinear}:
            _set_class(layer, nn.Linear)
    return model


def _quantization(model: nn.Module) -> set[str]:
    """The formats to which the weights of a model were quantized; empty if they were not."""
    return {layer.weight_format for layer in model.modules() if isinstance(layer, QuantizedLinear)}


def _refuse_quantized(model: nn.Module) -> None:
    """Raise a ValueError for a model whose weights were quantized, which cannot be undone."""
    if formats := _quantization(model):
        raise ValueError(
            f"this model's weights were quantized to {', '.join(formats)}, which cannot be undone: load it again"
        )


def _set_class(layer: Any, linear_class: type[nn.Linear]) -> None:
    """Change the class of a linear layer in place; parameters, names, ties and hooks are the module's, and stay."""
    for name in getattr(layer, "extra_attributes", ()):
        vars(layer).pop(name, None)
    layer.__class__ = linear_class


def _replace_modules(model: nn.Module, replacements: "dict[nn.Linear, QuantizedLinear]") -> None:
    """Replace modules of a model by others.

    Raises:
        ValueError: the model itself is to be replaced.
    """
    if model in replacements:
        raise ValueError("a linear layer by itself cannot be quantized in place: prepare the model that it is part of")
    for parent in [*model.modules()]:
        for name, child in parent._modules.items():
            if child in replacements:
                setattr(parent, name, replacements[child])


@checked
def gemv(
    x: Float[Tensor, "... inputs"], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, "outputs"]
) -> Float[Tensor, "... outputs"]:
    """Matrix-vector product (GEMV): a linear layer on one row, computed in float32 or wider.

    It is written as its definition, products and a sum; compiled, it is one loop over the weights.
    """
    compute_dtype = torch.promote_types(x.dtype, torch.float32)
    products = rearrange(x.to(compute_dtype), "... inputs -> ... 1 inputs") * weight.to(compute_dtype)
    return (reduce(products, "... outputs inputs -> ... outputs", "sum") + bias).to(x.dtype)


@checked
def gemv_int8(
    x: Float[Tensor, "... inputs"],
    weight: Int8[Tensor, "outputs inputs"],
    scale: Float[Tensor, "outputs"],
    bias: Float[Tensor, "outputs"],
) -> Float[Tensor, "... outputs"]:
    """Matrix-vector product with int8 weights: each output has a scale."""
    products = rearrange(x.to(scale.dtype), "... inputs -> ... 1 inputs") * weight.to(scale.dtype)
    return (reduce(products, "... outputs inputs -> ... outputs", "sum") * scale + bias).to(x.dtype)


@checked
def gemv_int4(
    x: Float[Tensor, "... inputs"],
    qweight: UInt8[Tensor, "outputs groups half"],
    scale: Float[Tensor, "outputs groups"],
    bias: Float[Tensor, "outputs"],
) -> Float[Tensor, "... outputs"]:
    """Matrix-vector product with int4 weights, two to a byte: each group of `GROUP_SIZE` inputs has its own scale."""
    x_low, x_high = rearrange(
        x.to(scale.dtype), "... (groups nibble half) -> nibble ... 1 groups half", nibble=2, half=GROUP_SIZE // 2
    )
    low, high = _unpack_int4(qweight, scale.dtype)
    products = (x_low * low + x_high * high) * rearrange(scale, "outputs groups -> outputs groups 1")
    return (reduce(products, "... outputs groups half -> ... outputs", "sum") + bias).to(x.dtype)


@checked
def _unpack_int4(
    qweight: UInt8[Tensor, "outputs groups half"], dtype: torch.dtype
) -> tuple[Float[Tensor, "outputs groups half"], Float[Tensor, "outputs groups half"]]:
    """The two int4 numbers of each byte, from -8 to 7: the low four bits, then the high four."""
    return (qweight & 15).to(dtype) - 8, (qweight >> 4).to(dtype) - 8


def call_compiled(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a function, compiled into one loop of machine code.

    It is compiled once for each combination of shapes, dtypes and number of threads.
    """
    inputs = tuple(one.contiguous() for one in inputs)
    return _compiled(function, torch.get_num_threads(), *((one.shape, one.dtype) for one in inputs))(*inputs)


@functools.cache
def _compiled(function: Callable[..., Tensor], threads: int, *signature: tuple[torch.Size, torch.dtype]) -> Any:
    return _lower(function, *(torch.zeros(shape, dtype=dtype) for shape, dtype in signature))


def _lower(function: Callable[..., Tensor], *inputs: Tensor) -> Any:
    """Compile a function with Inductor alone: a call costs a quarter of one to `torch.compile`'s, which checks more."""
    from torch._inductor import compile as lower
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad(), unchecked(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of PyTorch's own modules, about one another
        return lower(make_fx(function)(*inputs), list(inputs))


@functools.cache
def can_compile() -> bool:
    """True if functions can be compiled here, which takes a C++ compiler; a warning says why not."""
    try:
        _lower(gemv, torch.ones(1, 32), torch.ones(48, 32), torch.ones(48))
    except Exception as error:
        warnings.warn(
            f"compilation fails here, so ordinary kernels are used: {str(error).splitlines()[0]}",
            stacklevel=2,
        )
        return False
    return True


@checked
def pack_weight(weight: Float[Tensor, "outputs inputs"]) -> Tensor | None:
    """A copy of the weights in oneDNN's blocked format, or None where oneDNN cannot be used."""
    if not HAS_ONEDNN or weight.device.type != "cpu" or weight.dtype not in {torch.float32, torch.bfloat16}:
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight)


class PackedWeights(NamedTuple):
    """A linear layer's weights in the formats that its kernels read.

    Attributes:
        packed: in oneDNN's blocked format, if it can be used.
        gemv_inputs: weight and bias for `gemv`, if it can be compiled.
        version: of the parameters from which these were made; see `_weight_version`.
    """

    packed: Tensor | None
    gemv_inputs: tuple[Tensor, Tensor] | None
    version: tuple[object, ...]


def _pack(layer: nn.Linear) -> PackedWeights:
    """Pack the weights of a layer, unless it has a packed copy that is up to date."""
    if isinstance(layer, PackedLinear) and layer.packed_weights.version == _weight_version(layer):
        return layer.packed_weights
    weight = layer.weight.detach()
    bias = weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
    gemv_inputs = (weight.contiguous(), bias) if weight.device.type == "cpu" and can_compile() else None
    return PackedWeights(pack_weight(weight), gemv_inputs, _weight_version(layer))


def _weight_version(layer: nn.Linear) -> tuple[object, ...]:
    """A key that changes when a parameter does: its address, and the number of in-place changes."""
    parameters = (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)
    return tuple((one.data_ptr(), None if one.is_inference() else one._version) for one in parameters)


class PackedLinear(OneDNNLinear):
    """`nn.Linear` with a packed copy of its weights for oneDNN, and a compiled `gemv` for one row.

    Calls with gradients or in a compiler, and weights that have changed since, use `OneDNNLinear`.
    """

    packed_weights: PackedWeights
    extra_attributes = ("packed_weights",)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer along the last axis: `(..., inputs)` to `(..., outputs)`."""
        if (
            torch.compiler.is_compiling()
            or (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            or torch.is_autocast_enabled(x.device.type)
            or x.dtype is not self.weight.dtype
            or _weight_version(self) != self.packed_weights.version
        ):
            return super().forward(x)
        packed, gemv_inputs, _ = self.packed_weights
        if x.numel() == self.in_features:
            return super().forward(x) if gemv_inputs is None else call_compiled(gemv, x, *gemv_inputs)
        return super().forward(x) if packed is None else onednn(x, packed, self.bias)


class QuantizedLinear(nn.Module):
    """A linear layer with quantized weights: integers of eight or four bits, times a scale.

    Raises:
        ValueError: `weight_format` is "int4", and the layer's inputs do not divide into groups of `GROUP_SIZE`.
        ImportError: torchao is not installed.
    """

    qweight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear, weight_format: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.weight_format = layer.in_features, layer.out_features, weight_format
        weight = layer.weight.detach()
        qweight, scale = _quantize(weight, weight_format)
        compute_dtype = torch.promote_types(weight.dtype, torch.float32)
        if weight_format == "int4":
            low, high = rearrange(
                (qweight + 8).to(torch.uint8),
                "outputs (groups nibble half) -> nibble outputs groups half",
                nibble=2,
                half=GROUP_SIZE // 2,
            )
            qweight = (low | (high << 4)).contiguous()
        else:
            scale = rearrange(scale, "outputs 1 -> outputs")
        bias = weight.new_zeros(self.out_features) if layer.bias is None else layer.bias.detach()
        self.register_buffer("qweight", qweight)
        self.register_buffer("scale", scale.to(compute_dtype))
        self.register_buffer("bias", bias.to(compute_dtype))
        self.use_compiled = weight.device.type == "cpu" and qweight.numel() >= MIN_WEIGHTS and can_compile()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer along the last axis: `(..., inputs)` to `(..., outputs)`."""
        num_rows = x.numel() // self.in_features
        if not 0 < num_rows <= _MAX_GEMV_ROWS:
            return F.linear(x, self.dequantize().to(x.dtype), self.bias.to(x.dtype))
        kernel: Any = gemv_int8 if self.weight_format == "int8" else gemv_int4
        weights = (self.qweight, self.scale, self.bias)
        if torch.compiler.is_compiling():
            return kernel(materialize(x), *weights)
        if not self.use_compiled:
            return kernel(x, *weights)
        if num_rows == 1:
            return call_compiled(kernel, x, *weights)
        rows, leading = pack([x], "* inputs")
        outputs = [call_compiled(kernel, row, *weights) for row in rows]
        (result,) = unpack(rearrange(outputs, "rows outputs -> rows outputs"), leading, "* outputs")
        return result

    def dequantize(self) -> Tensor:
        """The weights as floating-point numbers again: `outputs inputs`."""
        if self.weight_format == "int8":
            return self.qweight.to(self.scale.dtype) * rearrange(self.scale, "outputs -> outputs 1")
        scale = rearrange(self.scale, "outputs groups -> outputs groups 1")
        scaled = [half * scale for half in _unpack_int4(self.qweight, scale.dtype)]
        return rearrange(scaled, "nibble outputs groups half -> outputs (groups nibble half)")


def materialize(x: Tensor) -> Tensor:
    """Have the compiler write a tensor to memory, instead of computing it anew for every output that uses it."""
    return x.as_strided(x.shape, x.stride())


def quiet_torchao() -> None:
    """Silence torchao's import: it lists which of its kernels do not load here, and none of them is used."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


@checked
def _quantize(
    weight: Float[Tensor, "outputs inputs"], weight_format: str
) -> tuple[Int8[Tensor, "outputs inputs"], Float[Tensor, "outputs groups"]]:
    """Integers and their scales, symmetric about zero, as torchao chooses them.

    Raises:
        ValueError: the format is "int4", and the inputs do not divide into groups of `GROUP_SIZE`.
        ImportError: torchao is not installed.
    """
    if weight_format == "int4" and weight.shape[1] % GROUP_SIZE:
        raise ValueError(
            f"int4 takes inputs in groups of {GROUP_SIZE}; a layer of this model has {weight.shape[1]}: use int8"
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
        if weight_format == "int8"
        else quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]
            granularity=quantization.PerGroup(GROUP_SIZE),
        )
    )
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    quantization.quantize_(layer, config)
    quantized: Any = layer.weight
    return quantized.qdata, quantized.scale
