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
from collections.abc import Collection, Iterable, Mapping
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
from allformers.messages import shown, shown_name, shown_names, warn

if TYPE_CHECKING:
    from allformers.checkpoints.pretrained import Pretrained

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that come from wrappers, as of `torch.compile`; `DistributedDataParallel` puts `module` before all."""

PACKED = {
    ".qweight": "GPTQ or AWQ",
    ".quant_state.": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
    "_blocks": "MXFP4",
}
"""Parts of the names of weights that are integers, several packed into one, and the methods that make them."""

FAULTS = ("missing", "unexpected", "there twice", "of another size", "not floating-point")
"""What can be wrong with a weight."""

_SHOWN = 6  # faults of one kind that a message lists


def checkpoint_tensors(model: "Pretrained") -> dict[str, Tensor]:
    """A model's weights, named and laid out as in its checkpoints, on the CPU; a tied head is left out.

    Of a model that is spread over several processes each gets the whole weights, and all have to call this.

    Raises:
        CheckpointError: the model's parameters are not those that its configuration describes: layers were replaced,
            quantised or wrapped, or have other sizes.
    """
    parameters = _parameters(model)
    form = model.checkpoint_format()
    head = {row.ours for row in form.head}
    prefix = form.prefix if head else ""  # as the reference writes it: a model without a head has none
    tensors: dict[str, Tensor] = {}
    for row in _rows_to_save(model, parameters):
        parameter = parameters[row.ours]
        is_tied = row.tied_to is not None and parameter is parameters[row.tied_to]
        if not is_tied or not model.config.tie_embeddings:
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # sharded, or not
            whole = whole.clone() if is_tied else whole  # tied after all, and a file shares no memory
            names = row.names(model.config.axes)
            for name, part in zip(names, whole.detach() if len(names) > 1 else [whole.detach()], strict=True):
                place = name if row.ours in head else prefix + name
                tensors[place] = _to_theirs(part.cpu(), row.each, model.config.axes).contiguous()
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
        reason = (
            f"this {type(model).__name__} cannot be saved: it has other parameters than its configuration describes. "
            "If layers were quantised or wrapped, save the model as it was before:"
        )
        raise CheckpointError("\n  ".join([reason, *_first(faults)]))
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
    """The weight tables with `{layer}` written out, as far as a model has these weights."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    form, rows = model.checkpoint_format(), []
    for row in (*form.weights, *form.head):
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
    extra_layers: int = 0,
) -> Any:
    """Build a model with these weights, or raise one error that says everything that does not fit.

    Args:
        cls: the model's class.
        config: its configuration.
        tensors: the weights, by the names that the checkpoint has.
        dtype: of the model; if None, the widest of its weights.
        device: of the model; if None, the CPU.
        where: the checkpoint, as errors and warnings name it.
        extra_layers: the number of layers behind the last one that may be there, and are left out.
    """
    _check_counts(cls.checkpoint_format(), config, tensors, where)
    model = empty_model(cls, config)
    rows = _match_weights(model, tensors, where, extra_layers)
    dtype = dtype or _widest({name: tensors[name].dtype for names, _ in rows for name in names}, where)
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


def has_head(form: Format, names: Collection[str]) -> bool:
    """True if there are weights of a model's head among these names."""
    return any(row.theirs in _table_names(names, form) for row in form.head)


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


def check_target(dtype: Any, device: Any) -> None:
    """Refuse a dtype or a device that a model cannot have, before anything is read.

    Raises:
        CheckpointError: the dtype is no floating-point one of at least 16 bits, or the device cannot be used here.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        raise CheckpointError(
            f"dtype is {shown(dtype)}, but weights can be torch.float32, torch.bfloat16, torch.float16 or torch.float64"
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise CheckpointError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error


def unwrapped(model: Any) -> Any:
    """The model inside those that `torch.compile`, `DistributedDataParallel` and others have put around it."""
    while isinstance(model, nn.Module):
        children = dict(model.named_children())
        if len(children) != 1 or not children.keys() <= {*WRAPPERS, "module"}:
            break
        (model,) = children.values()
    return model


def _widest(dtypes: Mapping[str, torch.dtype], where: str) -> torch.dtype:
    """The dtype that holds the values of all weights.

    Raises:
        CheckpointError: some are float8, which has no arithmetic, so that somebody must say what they become.
    """
    narrow = [name for name, dtype in dtypes.items() if dtype.itemsize == 1]
    if narrow:
        raise CheckpointError(
            f"{where}: {len(narrow)} of {len(dtypes)} weights, such as {shown_name(narrow[0])}, are "
            f"{dtypes[narrow[0]]} without scales, and PyTorch cannot compute with that: say what to convert them to, "
            "such as dtype=torch.bfloat16"
        )
    return functools.reduce(torch.promote_types, dtypes.values())


def _match_weights(
    model: "Pretrained", tensors: Mapping[str, LazyTensor], where: str, extra_layers: int
) -> list[tuple[list[str], Weight]]:
    """Match each row of the tables with the names of its tensors; every name and every row is accounted for."""
    form, config, rows = model.checkpoint_format(), model.config, _rows(model)
    table = {name: row for row in rows for name in row.names(config.axes)}
    ignored = [re.compile(re.escape(name).replace(r"\{layer\}", r"\d+")) for name in form.ignored_weights]
    named = _table_names(tensors, form)
    extra = _extra_layers(named, form, config.num_layers, extra_layers)
    found: dict[str, str] = {}
    left_out: dict[str, list[str]] = {}
    faults: dict[str, list[str]] = {kind: [] for kind in FAULTS}
    for name, originals in named.items():
        if name in table:
            found[name] = originals[0]
            if len(originals) > 1 and not _are_copies(originals, tensors, form):
                names = " and ".join(map(shown_name, originals))
                faults["there twice"].append(f"{names} (for {table[name].ours})")
        elif any(pattern.fullmatch(name) for pattern in ignored):
            continue
        elif (part := _part_left_out(name, form, extra)) is not None:
            left_out.setdefault(part, []).extend(originals)
        else:
            faults["unexpected"] += map(shown_name, originals)
    _untie(found, rows, tied=getattr(config, "tie_embeddings", False))
    for name, row in table.items():
        if name not in found:
            if row.tied_to is None or not config.tie_embeddings:
                faults["missing"].append(f"{name} (for {row.ours})")
            continue
        tensor, expected = tensors[found[name]], _shape(row.each.their_axes, config.axes)
        if tensor.shape != expected:
            faults["of another size"].append(
                f"{shown_name(found[name])} is {shown(tensor.shape)}, expected {expected}: axes {row.each.their_axes}"
            )
        if not tensor.dtype.is_floating_point:
            faults["not floating-point"].append(f"{shown_name(found[name])} is {tensor.dtype}")
    if any(faults.values()):
        said = _cause(model, tensors, faults, left_out) or _listed(faults)
        raise CheckpointError(f"the weights of {where} do not fit {type(model).__name__}: {said}")
    if left_out:
        parts = "; ".join(f"{part}: {shown_names(names, most=3)}" for part, names in left_out.items())
        warn(f"{where}: {type(model).__name__} leaves out {parts}")
    present = [([found[name] for name in row.names(config.axes) if name in found], row) for row in rows]
    return [(names, row) for names, row in present if names]


def _table_names(names: Collection[str], form: Format) -> dict[str, list[str]]:
    """The names as the tables have them, each with those that stand for it: one, unless a weight is there twice."""
    found: dict[str, list[str]] = {}
    for original, plain in _unwrapped(names).items():
        name = plain.removeprefix(form.prefix)
        for old, new in form.legacy_suffixes.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        found.setdefault(form.copies.get(name, name), []).append(original)
    return found


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """For each name of a weight, the name that it had before the model was wrapped."""
    plain = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    while plain and all(name.startswith("module.") for name in plain.values()):
        plain = {original: name.removeprefix("module.") for original, name in plain.items()}
    return plain


def _are_copies(originals: list[str], tensors: Mapping[str, LazyTensor], form: Format) -> bool:
    """True if a weight may be there under all these names, and is the same under all."""
    if sum(not original.endswith(tuple(form.copies)) for original in originals) != 1:
        return False
    first, *others = (_read(tensors[original]).double() for original in originals)
    return all(torch.equal(first, other) for other in others)


def _read(tensor: LazyTensor) -> Tensor:
    values = torch.empty(tensor.shape, dtype=tensor.dtype)
    tensor.read_into(values)
    return values


def _untie(found: dict[str, str], rows: list[Weight], *, tied: bool) -> None:
    """Where a tied weight is filed under the head's name alone, file it under the name of what it is tied to."""
    theirs = {row.ours: row.theirs for row in rows}
    for row in rows:
        if tied and row.tied_to is not None and theirs[row.tied_to] not in found and row.theirs in found:
            found[theirs[row.tied_to]] = found.pop(row.theirs)


def _extra_layers(names: Iterable[str], form: Format, num_layers: int, allowed: int) -> dict[str, int]:
    """The layers behind the last one: the beginning of their names, and their numbers; none if they are too many."""
    before = next((row.theirs.partition("{layer}")[0] for row in form.weights if "{layer}" in row.theirs), "")
    numbers = {int(match[1]) for name in names if (match := re.match(rf"{re.escape(before)}(\d{{1,9}})\.", name))}
    extra = [number for number in numbers if number >= num_layers]
    return {f"{before}{number}.": number for number in extra} if len(extra) <= allowed else {}


def _part_left_out(name: str, form: Format, extra_layers: Mapping[str, int]) -> str | None:
    """The part of another model that a weight belongs to; None if it is not known."""
    for beginning, number in extra_layers.items():
        if name.startswith(beginning):
            return f"layer {number}, which predicts one more token"
    return next((part for beginning, part in form.other_heads.items() if name.startswith(beginning)), None)


def _cause(
    model: "Pretrained",
    names: Collection[str],
    faults: Mapping[str, list[str]],
    left_out: Mapping[str, list[str]],
) -> str | None:
    """The one cause of all faults, in a line; None if it is not known."""
    for mark, method in PACKED.items():
        packed = next((name for name in names if mark in name), None)
        if packed is not None:
            return (
                f"{shown_name(packed)} holds packed integers, as {method} writes them: take a checkpoint that is not "
                "quantised"
            )
    outer = _outer_prefix(model, names)
    if outer is not None:
        return (
            f"every name begins with {shown(outer)}, which is not the model's own: save the model alone that was saved "
            "as a part of another, or strip this from the names"
        )
    head = {f"{name} (for {row.ours})" for row in model.checkpoint_format().head for name in row.names({})}
    if [kind for kind in FAULTS if faults[kind]] == ["missing"] and set(faults["missing"]) <= head:
        missing = shown_names((one.partition(" ")[0] for one in faults["missing"]), most=3)
        instead = "".join(f"; instead there is {part}" for part in left_out)
        encoder = type(model).encoder_class()
        if encoder is None:
            do = "no other matrix can take its place, since tie_word_embeddings is false"
        else:
            do = f"{encoder.__name__} loads it, and so does allformers.load"
        return f"it is a model without this head (missing: {missing}{instead}); {do}"
    return None


def _outer_prefix(model: "Pretrained", names: Collection[str]) -> str | None:
    """What all names begin with if most of the model's weights are found without it."""
    form, first = model.checkpoint_format(), next(iter(names), "")
    table = {name for row in _rows(model) for name in row.names(model.config.axes)}
    for end in (0, *(dot.end() for dot in re.finditer(r"\.", first))):
        inner = [name.removeprefix(first[:end]) for name in names]
        if not all(name.startswith(first[:end]) for name in names):
            return None
        if 2 * len(table & _table_names(inner, form).keys()) > len(table):
            return first[:end] or None
    return None


def _listed(faults: Mapping[str, list[str]]) -> str:
    """All kinds of faults with their numbers, and the first few of each kind."""
    lines = [", ".join(f"{len(some)} {kind}" for kind, some in faults.items() if some)]
    for kind, some in faults.items():
        lines += [f"{kind}: {one}" for one in _first(some)]
    return "\n  ".join(lines)


def _first(faults: list[str]) -> list[str]:
    """The first few faults, and the number of the others."""
    return faults[:_SHOWN] + ([f"... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else [])
