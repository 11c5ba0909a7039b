"""Weights, from a checkpoint into a model and back, by the model's table.

Nothing is guessed and nothing dropped in silence: every name in the checkpoint and every parameter of the model is
accounted for exactly once, or the whole list of what does not fit is one `CheckpointError`.
"""

import contextlib
import dataclasses
import functools
import math
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from einops import rearrange
from einops.parsing import ParsedExpression
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.tables import Format, Weight
from allformers.checkpoints.tensors import LazyTensor

if TYPE_CHECKING:
    from allformers.checkpoints.pretrained import Pretrained


def checkpoint_tensors(model: "Pretrained") -> dict[str, Tensor]:
    """A model's weights, named and laid out as in its checkpoints, on the CPU; a tied head is left out.

    Of a model that is spread over several processes each gets the whole weights, and all have to call this.

    Raises:
        CheckpointError: the model's parameters are not those that its configuration describes: layers were replaced,
            quantized or wrapped, or have other sizes.
    """
    parameters = _parameters(model)
    tensors: dict[str, Tensor] = {}
    for row in _rows_to_save(model, parameters):
        parameter = parameters[row.ours]
        is_tied = row.tied_to is not None and parameter is parameters[row.tied_to]
        if not is_tied or not model.config.tie_embeddings:
            prefix = "" if row.tied_to else model.checkpoint_format().prefix
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # sharded, or not
            whole = whole.clone() if is_tied else whole  # tied after all, and a file shares no memory
            names = row.names(model.config.axes)
            for name, part in zip(names, whole.detach() if len(names) > 1 else [whole.detach()], strict=True):
                tensors[prefix + name] = _to_theirs(part.cpu(), row.each, model.config.axes).contiguous()
    return tensors


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """A model's parameters by name, a shared one under each of its names; as they were before layers were compiled."""
    named = model.named_parameters(remove_duplicate=False)
    return {name.replace("_orig_mod.", ""): parameter for name, parameter in named}


def _rows_to_save(model: "Pretrained", parameters: Mapping[str, nn.Parameter]) -> list[Weight]:
    """The weight table of a model that is built anew from the configuration, if the model has just these parameters."""
    rows = _rows(_built_anew(model))
    of_class = {name: f" of a {type(module).__name__}" for name, module in model.named_modules()}
    missing = [row.ours for row in rows if row.ours not in parameters]
    faults = [f"missing: {name}{of_class.get(name.rpartition('.')[0], '')}" for name in missing]
    faults += [f"unexpected: {name}" for name in parameters if name not in {row.ours for row in rows}]
    for row in rows:
        if row.ours in parameters:
            parameter, expected = parameters[row.ours], _shape(row.our_axes, model.config.axes)
            if parameter.shape != expected:
                faults.append(f"size mismatch: {row.ours} is {tuple(parameter.shape)}, expected {expected}")
            kind = type(parameter.detach())
            is_plain = kind is Tensor or hasattr(parameter, "full_tensor")
            if not (is_plain and parameter.is_floating_point()) or parameter.is_meta:
                what = f"{kind.__name__} of {parameter.dtype} on {parameter.device}"
                faults.append(f"no floating-point numbers: {row.ours} is a {what}")
    if faults:
        shown = faults[:6] + ([f"... and {len(faults) - 6} more"] if len(faults) > 6 else [])
        reason = (
            f"this {type(model).__name__} cannot be saved: it has other parameters than its configuration describes. "
            "If layers were quantized or wrapped, save the model as it was before:"
        )
        raise CheckpointError("\n  ".join([reason, *shown]))
    return rows


def _built_anew(model: "Pretrained") -> "Pretrained":
    """A model without memory of the same configuration, of the first class that needs no more than a configuration."""
    for model_class in type(model).__mro__:
        with contextlib.suppress(TypeError):
            return cast("Pretrained", empty_model(model_class, model.config))
    raise CheckpointError(f"{type(model).__name__} cannot be built from its configuration")


def weight_axes(model: "Pretrained") -> dict[str, str]:
    """The named axes of every parameter, by its name in the model."""
    return {row.ours: row.our_axes for row in _rows(model)}


def _rows(model: "Pretrained") -> list[Weight]:
    """The weight table with `{layer}` written out, as far as a model has these weights."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    rows = []
    for row in model.checkpoint_format().weights:
        for layer in range(model.config.num_layers) if "{layer}" in row.theirs else ["0"]:
            theirs, ours = (name.replace("{layer}", str(layer)) for name in (row.theirs, row.ours))
            if ours in parameters:
                rows.append(row._replace(theirs=theirs, ours=ours))
    return rows


def _sizes(pattern: str, axes: Mapping[str, int]) -> dict[str, int]:
    return {name: axes[name] for name in ParsedExpression(pattern).identifiers}


def _shape(pattern: str, axes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that one side of a pattern describes: `"embed (heads head_dim)"` is (768, 12 * 64)."""
    groups = re.findall(r"\([^)]*\)|\w+", pattern)
    return tuple(math.prod(1 if name == "1" else axes[name] for name in re.findall(r"\w+", group)) for group in groups)


def _to_ours(tensor: Tensor, row: Weight, axes: Mapping[str, int]) -> Tensor:
    return rearrange(tensor, row.axes, **_sizes(row.our_axes, axes)) if "->" in row.axes else tensor


def _to_theirs(tensor: Tensor, row: Weight, axes: Mapping[str, int]) -> Tensor:
    if "->" not in row.axes:
        return tensor
    return rearrange(tensor, f"{row.our_axes} -> {row.their_axes}", **_sizes(row.our_axes, axes))


def _load_weight(
    tensors: list[LazyTensor], row: Weight, axes: Mapping[str, int], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Read a weight into our layout: straight into place where their layout is another view of the same memory."""
    weight = _room(row, _shape(row.our_axes, axes), dtype, device)
    for tensor, ours in zip(tensors, weight if len(tensors) > 1 else [weight], strict=True):
        theirs = _to_theirs(ours, row.each, axes)
        tensor.read_into(theirs)
        if theirs.untyped_storage().data_ptr() != ours.untyped_storage().data_ptr():
            ours.copy_(_to_ours(theirs, row.each, axes))
    return weight


def _room(row: Weight, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Memory for a weight."""
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except (RuntimeError, MemoryError) as error:
        gigabytes = math.prod(shape) * dtype.itemsize / 1e9
        raise CheckpointError(f"{device} has no {gigabytes:.1f} GB left for {row.ours} of shape {shape}") from error


def _check_counts(form: Format, config: Any, tensors: Mapping[str, LazyTensor], where: str) -> None:
    """Refuse layers and experts that a file has no weights for, by their highest numbers, before any is built.

    A file without any is left to the comparison of all names, which says what is there instead, unless that would
    write a hundred thousand names.
    """
    for thing, size in (("layer", "num_layers"), ("expert", "num_experts")):
        starts = {row.theirs.partition(f"{{{thing}}}")[0] for row in form.weights if f"{{{thing}}}" in row.theirs}
        if not starts:
            continue
        choices = "|".join(re.escape(start).replace(r"\{layer\}", r"\d+") for start in sorted(starts))
        pattern = re.compile(rf"(?:^|\.)(?:{choices})(\d{{1,9}})\.")
        found = 1 + max((int(match[1]) for name in tensors if (match := pattern.search(name))), default=-1)
        stated = getattr(config, size)
        if found < stated and (found or stated * config.num_layers > 100_000):
            field = next(field.theirs for field in form.fields if field.ours == size)
            raise CheckpointError(f"{where}: {field} is {stated}, but the weights are those of {found} {thing}s")


def build_model(
    cls: type[Any],
    config: Any,
    tensors: Mapping[str, LazyTensor],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    where: str,
) -> Any:
    """Build a model with these weights, or raise one error that lists everything that does not fit."""
    _check_counts(cls.checkpoint_format(), config, tensors, where)
    model = empty_model(cls, config)
    rows = _match_weights(model, tensors, where)
    dtype = dtype or functools.reduce(torch.promote_types, {tensors[name].dtype for names, _ in rows for name in names})
    state: dict[str, Tensor] = {}
    for names, row in rows:
        state[row.ours] = _load_weight([tensors[name] for name in names], row, config.axes, dtype, device or "cpu")
    for _, row in rows:
        if row.tied_to is not None and config.tie_embeddings:
            if torch.equal(state[row.ours], state[row.tied_to]):
                del state[row.ours]
            else:  # a head of its own, whatever the configuration says: the reference keeps it too
                model = empty_model(cls, dataclasses.replace(config, tie_embeddings=False))
    parameter_names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter_names.setdefault(parameter, []).append(name)
    for parameter, names in parameter_names.items():
        weight = next(state[name] for name in names if name in state)
        loaded = nn.Parameter(weight, requires_grad=parameter.requires_grad)
        for owner, _, leaf in (name.rpartition(".") for name in names):
            setattr(model.get_submodule(owner), leaf, loaded)
    return model.to(device or "cpu").eval()


def empty_model(model_class: type[Any], config: Any) -> Any:
    """Return a model with its parameters on the meta device, not initialised, and its buffers real."""
    outer, _thread.on_meta = _thread.on_meta, True
    try:
        with _SkipInit():
            return model_class(config)
    finally:
        _thread.on_meta = outer


class _Thread(threading.local):
    """State of one thread: with `on_meta`, the parameters that it registers go to the meta device."""

    on_meta = False


_thread = _Thread()


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    if not _thread.on_meta or parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


# Once and for all: to add and remove it for each model would disturb other threads that build models meanwhile.
register_module_parameter_registration_hook(cast(Any, _to_meta))


class _SkipInit(TorchFunctionMode):
    """Skip `torch.nn.init`: parameters on the meta device have no numbers to draw; and make them there at once."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        if func is torch.empty:  # what modules make parameters of: even for a moment, a large one has no memory
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _modern_name(name: str, suffixes: Mapping[str, str]) -> str:
    """The name that newer files give to a weight: an old suffix is replaced."""
    for old, new in suffixes.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _match_weights(
    model: "Pretrained", tensors: Mapping[str, LazyTensor], where: str
) -> list[tuple[list[str], Weight]]:
    """Match each row of the table with the names of its tensors; every name and every row is accounted for."""
    form, config = model.checkpoint_format(), model.config
    names = {_modern_name(name.removeprefix(form.prefix), form.legacy_suffixes): name for name in tensors}
    rows = _rows(model)
    table = {name: row for row in rows for name in row.names(config.axes)}
    ignored = [re.compile(re.escape(name).replace(r"\{layer\}", r"\d+")) for name in form.ignored_weights]
    faults = [
        f"duplicate, with and without {form.prefix}: {name}"
        for name in tensors
        if form.prefix and form.prefix + name in tensors
    ]
    for theirs, row in table.items():
        if theirs not in names:
            if row.tied_to is None or not config.tie_embeddings:
                faults.append(f"missing: {theirs} (for {row.ours})")
            continue
        tensor, expected = tensors[names[theirs]], _shape(row.each.their_axes, config.axes)
        if tensor.shape != expected:
            faults.append(
                f"size mismatch: {names[theirs]} is {tensor.shape}, expected {expected}: axes {row.each.their_axes}"
            )
        if not tensor.dtype.is_floating_point:
            faults.append(f"not floating-point: {names[theirs]} is {tensor.dtype}")
    faults += [
        f"unexpected: {original}"
        for name, original in names.items()
        if name not in table and not any(pattern.fullmatch(name) for pattern in ignored)
    ]
    if faults:
        shown = faults[:20] + ([f"... and {len(faults) - 20} more"] if len(faults) > 20 else [])
        raise CheckpointError("\n  ".join([f"the weights of {where} do not fit {type(model).__name__}:", *shown]))
    found = [([names[theirs] for theirs in row.names(config.axes) if theirs in names], row) for row in rows]
    return [(present, row) for present, row in found if present]
