"""Summary of a model: parts, weights, parameters, FLOPs and memory, from a pass on the meta device."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from allformers.checkpoints.loading import empty_model, weight_axes
from allformers.generation.decoder import Decoder
from allformers.nn.shapes import checked


class ModuleCost(NamedTuple):
    """One part of a model.

    Attributes:
        name: its path in the model; `*` stands for every layer's number where all layers are alike.
        copies: how many there are.
        weights: the named axes and the sizes of each of its own parameters, not of its parts'.
        parameters: numbers in one of them; 0 if all belong to another part (a tied head).
        flops_per_token: floating-point operations of one of them for one token, without its parts', multiplications and
            additions counted apart, averaged over a whole context.
    """

    name: str
    copies: int
    weights: Mapping[str, tuple[str, tuple[int, ...]]]
    parameters: int
    flops_per_token: float


class Summary(NamedTuple):
    """The parts of a model, and its cost in FLOPs and memory.

    Attributes:
        modules: the parts, in the order of registration.
        parameters: numbers in all weights, shared ones counted once.
        flops_per_token: of a forward pass, averaged over a whole context, logits of every position included.
        weight_bytes: memory of the weights in their dtype.
        cache_bytes_per_token: memory that the cache takes for each position, in that dtype.
    """

    modules: tuple[ModuleCost, ...]
    parameters: int
    flops_per_token: float
    weight_bytes: int
    cache_bytes_per_token: float


@checked
def meta_model(model_class: type[Any], config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Return a model on the meta device, buffers too: all shapes, no values, no memory."""
    return empty_model(model_class, config).to(dtype).to("meta").eval()


class EvenRouting(TorchFunctionMode):
    """Route tokens evenly to experts inside this `with` block, so that a model with experts runs on the meta device.

    A router's choice has no values there, so the tokens of each expert cannot be counted.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return an even split in place of a count of meta tokens; pass other functions on."""
        options = kwargs or {}
        if function is torch.bincount and args[0].is_meta:
            experts = options["minlength"]
            share, rest = divmod(len(args[0]), experts)
            return torch.tensor([share + (expert < rest) for expert in range(experts)])
        return function(*args, **options)


@checked
def summarise(model_class: type[Any], config: Any, dtype: torch.dtype = torch.float32) -> Summary:
    """Summarise a model by running it on the meta device, where tensors have shapes but no memory.

    So it takes no more for the largest model than for the smallest. FLOPs are those of matrix products (PyTorch's own
    counter), which are nearly all there are.

    Args:
        model_class: a model of this package.
        config: its configuration.
        dtype: of the weights and the cache.
    """
    model = meta_model(model_class, config, dtype)
    inputs = model.dummy_input(1, config.context_length, "meta")
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    cache = model.make_cache() if isinstance(model, Decoder) else None
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), EvenRouting(), counter:
        model(inputs) if cache is None else model(inputs, cache=cache)
    flops = {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}
    axes = weight_axes(model)
    root = type(model).__name__

    merged: dict[tuple[object, ...], ModuleCost] = {}
    owned: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        below = sum(flops.get(f"{root}.{name}.{child}", 0) for child, _ in module.named_children())
        cost = max(0, flops.get(f"{root}.{name}", 0) - below) / config.context_length  # a ModuleList never runs itself
        if not own and (not name or not cost):
            continue
        prefix, cost = (f"{name}.", cost) if name else ("", 0.0)  # the model's own cost is that of its parts
        weights = {leaf: (axes[f"{prefix}{leaf}"], tuple(parameter.shape)) for leaf, parameter in own.items()}
        parameters = sum(parameter.numel() for parameter in own.values() if parameter not in owned)
        owned.update(own.values())
        path = ".".join("*" if step.isdigit() else step for step in name.split(".")) or "(model)"
        part = ModuleCost(path, 1, weights, parameters, cost)
        key = (path, tuple(weights.items()), parameters, cost)
        merged[key] = part._replace(copies=merged[key].copies + 1) if key in merged else part
    return Summary(
        modules=tuple(merged.values()),
        parameters=sum(parameter.numel() for parameter in owned),
        flops_per_token=flops["Global"] / config.context_length,
        weight_bytes=sum(parameter.nbytes for parameter in owned),
        cache_bytes_per_token=0.0 if cache is None else cache.nbytes / config.context_length,
    )
