"""Checkpoints in Hugging Face's format, read and written by tables.

A checkpoint is a folder: `config.json` says which model it is, `model.safetensors` holds the weights by name. What a
model calls things, and how its matrices lie, differs from what the checkpoint says; each model states the differences
once, as data, and this module applies them in both directions:

    Weight("h.{layer}.mlp.c_fc.weight", "blocks.{layer}.mlp.up.weight", "embed mlp -> mlp embed")
    Field("n_embd", "embedding_dim", 768)

Nothing is guessed and nothing dropped in silence: every name in the checkpoint and every parameter of the model is
accounted for exactly once, or the whole list of what does not fit is one `CheckpointError`.
"""

import dataclasses
import functools
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, NamedTuple, Self

import safetensors.torch
import torch
from einops import rearrange
from einops.parsing import ParsedExpression
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from allformers.files import replacing

BUNDLED = Path(__file__).parent / "bundled"
"""The checkpoint that comes with this package: a small GPT-2, trained by `allformers train`."""

_PIECE = 16 * 2**20


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model. The message names the file, field or weight."""


class Weight(NamedTuple):
    """One row of a weight table.

    Attributes:
        theirs: the name in the checkpoint. `{layer}` stands for each layer's number. `{expert}` stands for each
            expert's: theirs are single matrices, and ours holds them all, along its first axis `experts`.
        ours: the name in the model.
        axes: the axes of the weight; where it lies differently in the two, an einops pattern from theirs to ours.
        tied_to: for a weight that the checkpoint may leave out: the parameter of ours that it then equals.

    A row counts for the models that have such a parameter: without biases, the rows of biases stand for nothing, and
    where only some layers have experts, the rows of experts are for those layers.
    """

    theirs: str
    ours: str
    axes: str
    tied_to: str | None = None

    @property
    def their_axes(self) -> str:
        """The axes as they lie in the checkpoint."""
        return self.axes.split("->")[0].strip()

    @property
    def our_axes(self) -> str:
        """The axes as they lie in the model."""
        return self.axes.split("->")[-1].strip()

    def names(self, axes: Mapping[str, int]) -> list[str]:
        """The names in the checkpoint: one, or one for each expert."""
        if "{expert}" not in self.theirs:
            return [self.theirs]
        return [self.theirs.replace("{expert}", str(expert)) for expert in range(axes["experts"])]

    @property
    def each(self) -> "Weight":
        """The row for a single matrix of those that are joined: without the first axis, `experts`."""
        if "{expert}" not in self.theirs:
            return self
        sides = [side.strip().removeprefix("experts").strip() for side in self.axes.split("->")]
        return self._replace(axes=" -> ".join(sides))


class Field(NamedTuple):
    """One row of a configuration table.

    Attributes:
        theirs: the field in `config.json`; a dot stands for nesting.
        ours: the field of the model's configuration. Rows that share it must agree in a checkpoint.
        default: what the field means if it is missing or null: a value, or a function of what is known by then: all of
            `config.json` under its names, and the rows above under ours.
        when: for a field that only some kinds of configuration write: the field of ours that says so, then its values.
    """

    theirs: str
    ours: str
    default: Any | Callable[[Mapping[str, Any]], Any]
    when: tuple[str, ...] = ()

    def is_written(self, config: Any) -> bool:
        """Whether a configuration writes it."""
        return not self.when or getattr(config, self.when[0]) in self.when[1:]


def linear(theirs: str, ours: str, axes: str) -> tuple[Weight, Weight]:
    """The rows of a linear layer: its matrix, of these axes, and its bias, along the first axis of the matrix."""
    matrix = Weight(f"{theirs}.weight", f"{ours}.weight", axes)
    outputs = re.match(r"\(.*?\)|\w+", matrix.our_axes)
    assert outputs is not None
    return matrix, Weight(f"{theirs}.bias", f"{ours}.bias", outputs[0])


def norm(theirs: str, ours: str, axes: str = "embed") -> tuple[Weight, Weight]:
    """The rows of a layer norm: its gain and its shift."""
    return Weight(f"{theirs}.weight", f"{ours}.weight", axes), Weight(f"{theirs}.bias", f"{ours}.bias", axes)


def each_layer(theirs: str, ours: str, *rows: Weight) -> tuple[Weight, ...]:
    """Rows for every layer, with what all names begin with."""
    return tuple(row._replace(theirs=f"{theirs}.{row.theirs}", ours=f"{ours}.{row.ours}") for row in rows)


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a model's checkpoints look: its two tables, and what is left out on purpose.

    Attributes:
        model_type: the value of `model_type` in `config.json`.
        architecture: the reference's class, written to `architectures` when saving.
        config_class: the model's configuration.
        fields: the configuration table.
        aliases: other names that the reference takes for the same fields.
        ignored_fields: fields with no part in the arithmetic, each with the reason.
        refused_fields: fields with which the model would be another one: the only value accepted, and the reason.
        weights: the weight table.
        ignored_weights: names that hold no weights, each with the reason.
        prefix: what some checkpoints put before the names of everything except the head.
        written: further fields to write for a configuration, where the reference's default would not fit it.
        endings: other endings that older files have for the names of some weights.
        from_disk: whether a live model names or lays out its weights otherwise than its files do, so that it has to be
            copied by way of these.
    """

    model_type: str
    architecture: str
    config_class: type
    fields: tuple[Field, ...]
    aliases: Mapping[str, str]
    ignored_fields: Mapping[str, str]
    refused_fields: Mapping[str, tuple[Any, str]]
    weights: tuple[Weight, ...]
    ignored_weights: Mapping[str, str]
    prefix: str = ""
    written: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    endings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    from_disk: bool = False

    def extended(
        self,
        model_type: str,
        architecture: str,
        config_class: type,
        *,
        without: tuple[str, ...] = (),
        renamed: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
        fields: tuple[Field, ...] = (),
        refused_fields: Mapping[str, tuple[Any, str]] | None = None,
        ignored_fields: Mapping[str, str] | None = None,
        weights: tuple[Weight, ...] = (),
        **others: Any,
    ) -> "Format":
        """The format of a descendant: this one, and what it says besides.

        Args:
            model_type: as for any format, like all that is not named here.
            architecture: likewise.
            config_class: likewise.
            without: the rows that it does not have: beginnings of their names.
            renamed: other beginnings of fields' names.
            defaults: other defaults, by their names.
            fields: further rows.
            refused_fields: further fields.
            ignored_fields: further fields.
            weights: further rows.
            others: what takes the place of what is here.
        """

        def now(theirs: str) -> str:
            return functools.reduce(lambda name, pair: name.replace(*pair, 1), (renamed or {}).items(), theirs)

        kept = [row._replace(theirs=now(row.theirs)) for row in self.fields if not row.theirs.startswith(without)]
        changed = [row._replace(default=(defaults or {}).get(row.theirs, row.default)) for row in kept]
        refused = {now(name): row for name, row in self.refused_fields.items() if not name.startswith(without)}
        return dataclasses.replace(
            self,
            model_type=model_type,
            architecture=architecture,
            config_class=config_class,
            fields=(*changed, *fields),
            refused_fields={**refused, **(refused_fields or {})},
            ignored_fields={**self.ignored_fields, **(ignored_fields or {})},
            weights=(*(row for row in self.weights if not row.theirs.startswith(without)), *weights),
            **others,
        )


NOT_ARITHMETIC: Mapping[str, str] = {
    "model_type": "checked before anything else",
    "architectures": "the class it was saved from; the weights say what there is",
    "initializer_range": "for fresh weights only",
    "dtype": "the weights say it themselves",
    "torch_dtype": "the weights say it themselves",
    "transformers_version": "who wrote the file",
    "_name_or_path": "where it was loaded from",
    "_num_labels": "for classification heads",
    "id2label": "for classification heads",
    "label2id": "for classification heads",
    "problem_type": "for classification heads",
    "bos_token_id": "for generation; say it in stop_tokens or the prompt",
    "eos_token_id": "for generation; say it in stop_tokens or the prompt",
    "pad_token_id": "padding is hidden whatever its id",
    "task_specific_params": "settings for generation",
    "use_cache": "whether to cache is the caller's choice",
    "gradient_checkpointing": "memory in training, not arithmetic",
    "return_dict": "what the reference's forward returns",
    "output_attentions": "what the reference's forward returns",
    "output_hidden_states": "what the reference's forward returns",
    "chunk_size_feed_forward": "memory, not arithmetic",
}
"""Fields that any `config.json` may have and that change nothing in the model, each with the reason."""


class Stored(NamedTuple):
    """A tensor that has not been read yet; `copy_to` reads it into another of its shape, whatever that one's dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    copy_to: Callable[[Tensor], object]


class Checkpointed(nn.Module):
    """What a model with a `format` and a `config` can do: load and save, with nothing but its tables."""

    format: ClassVar[Format]
    config: Any

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Load a checkpoint.

        The model is built without memory and each tensor is read straight into its place, so that loading safetensors
        takes little more memory than the weights themselves. The model is returned in evaluation mode.

        Args:
            name: a folder, "bundled" for the model that comes with this package, or a model's name on the Hugging
                Face hub ("gpt2", "distilgpt2"), which is then downloaded once and kept in the hub's own cache.
            revision: a branch, tag or commit on the hub.
            dtype: of the weights; if None, the widest in the checkpoint.
            device: where to put them; if None, the CPU.

        Raises:
            CheckpointError: the folder or the model does not exist, a file is missing, truncated or unsafe, the
                configuration is of another architecture, or weights are missing, surplus or misshapen.
        """
        find = locate(name, revision)
        config = read_config(cls.format, read_json(require(find, "config.json", name)), where=f"{name}/config.json")
        return _build(cls, config, _open_weights(find, name), dtype, device, where=str(name))

    @classmethod
    def from_huggingface(cls, model: Any) -> Self:
        """Copy a live transformers model, for instance a `GPT2LMHeadModel`. The two share no memory.

        Raises:
            CheckpointError: it is of another architecture, or its weights do not fit.
        """
        where = type(model).__name__
        if cls.format.from_disk:
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                return cls.from_pretrained(folder, device=next(model.parameters()).device)
        config = read_config(cls.format, model.config.to_dict(), where=f"{where}.config")
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        stored = {name: _in_memory(tensor) for name, tensor in state.items()}
        device = next(iter(state.values())).device if state else None
        return _build(cls, config, stored, None, device, where=where)

    def example(self, batch: int, seq: int, device: torch.device | str) -> Tensor:
        """Something that the model can read, to see what it makes of it: token ids, all zero."""
        return torch.zeros(batch, seq, dtype=torch.long, device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` and transformers load with the same logits.

        Each file is written beside its place and then moved there, so that a failure leaves what was there before.
        """
        write_pretrained(folder, self.format, self.config, checkpoint_tensors(self))


def write_pretrained(folder: str | Path, form: Format, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint from the tensors that `checkpoint_tensors` gives.

    Raises:
        CheckpointError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"cannot save to {folder}: it is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    description = write_config(form, config)
    description["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    with (
        replacing(folder / "config.json") as config_file,
        replacing(folder / "model.safetensors") as weights_file,
    ):
        config_file.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, weights_file)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, with the rights that other new files get: its own writer lets only the owner read.

    Raises:
        OSError: the disk is full, or the place cannot be written to.
    """
    path.touch()
    rights = path.stat().st_mode
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from error
    path.chmod(rights)


def checkpoint_tensors(model: Checkpointed) -> dict[str, Tensor]:
    """A model's weights, named and laid out as in its checkpoints, on the processor; a tied head is left out.

    Of a model that is spread over several processes each gets the whole weights, and all have to call this.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors: dict[str, Tensor] = {}
    for row in _rows(model):
        parameter = parameters[row.ours]
        if row.tied_to is None or parameter is not parameters[row.tied_to]:
            prefix = "" if row.tied_to else model.format.prefix
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # sharded, or not
            names = row.names(model.config.axes)
            for name, part in zip(names, whole.detach() if len(names) > 1 else [whole.detach()], strict=True):
                tensors[prefix + name] = _to_theirs(part.cpu(), row.each, model.config.axes).contiguous()
    return tensors


def read_config(form: Format, given: Mapping[str, Any], where: str = "config.json") -> Any:
    """A model's configuration from the contents of a `config.json`.

    Raises:
        CheckpointError: another architecture, a field with which the model would be another one, or a value out of
            range; all of them at once.
    """
    if given.get("model_type") != form.model_type:
        raise CheckpointError(
            f"{where}: model_type is {given.get('model_type')!r}, but this is the class for {form.model_type!r}"
        )
    given = _renamed(_flat(_renamed(given, form.aliases), form), form.aliases)
    faults: list[str] = []
    for name, (accepted, reason) in form.refused_fields.items():
        if given.get(name, accepted) != accepted:
            faults.append(f"{name} is {given[name]!r}; only {accepted!r} is supported: {reason}")
    known = {field.theirs for field in form.fields} | set(form.ignored_fields) | set(form.refused_fields)
    unknown = sorted(set(given) - known)
    if unknown:
        warnings.warn(
            f"{where}: ignoring {', '.join(unknown)}, unknown to the reference implementation too", stacklevel=3
        )
    ours: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field in form.fields:
        value = given.get(field.theirs)
        if value is None:
            value = field.default({**given, **ours}) if callable(field.default) else field.default
        if field.ours in ours and ours[field.ours] != value:
            faults.append(
                f"{sources[field.ours]} is {ours[field.ours]!r} but {field.theirs} is {value!r}; here both are "
                f"{field.ours}, so make them equal"
            )
        ours.setdefault(field.ours, value)
        sources.setdefault(field.ours, field.theirs)
    if not faults:
        try:
            return form.config_class(**ours)
        except (ValueError, TypeError) as error:
            named = [theirs for name, theirs in sources.items() if name in str(error)]
            faults.append(f"{error} ({', '.join(named)})")
    raise CheckpointError("\n  ".join([f"{where} does not describe a model that can be built here:", *faults]))


def _renamed(given: Mapping[str, Any], aliases: Mapping[str, str]) -> Mapping[str, Any]:
    """The fields under the names that the table has."""
    for alias, name in aliases.items():
        if alias in given:
            given = {name: given[alias], **{key: value for key, value in given.items() if key != alias}}
    return given


def _flat(given: Mapping[str, Any], form: Format) -> Mapping[str, Any]:
    """Fields of a nested object as fields of their own, with a dot in their names, where the table has such."""
    nested = {field.theirs.rpartition(".")[0] for field in form.fields} - {""}
    nested |= {name.partition(".")[0] for name in nested}
    while inner := {name: value for name, value in given.items() if name in nested and (value is None or value)}:
        given = {name: value for name, value in given.items() if name not in nested}
        for name, value in inner.items():
            if not isinstance(value, Mapping | None):
                raise CheckpointError(f"{name} should be an object, not {value!r}")
            given |= {f"{name}.{key}": one for key, one in (value or {}).items()}
    return given


def write_config(form: Format, config: Any) -> dict[str, Any]:
    """The contents of a `config.json` for a model's configuration."""
    fields: dict[str, Any] = {}
    for field in form.fields:
        if not field.is_written(config):
            continue
        *outer, name = field.theirs.split(".")
        place = fields
        for key in outer:
            place = place.setdefault(key, {})
        value = getattr(config, field.ours)
        place[name] = list(value) if isinstance(value, tuple) else value
    return {"model_type": form.model_type, "architectures": [form.architecture], **fields, **form.written(config)}


def weight_axes(model: Checkpointed) -> dict[str, str]:
    """The named axes of every parameter, by its name in the model."""
    return {row.ours: row.our_axes for row in _rows(model)}


def _rows(model: Checkpointed) -> list[Weight]:
    """The weight table with `{layer}` written out, as far as a model has these weights."""
    there = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    rows = []
    for row in model.format.weights:
        for layer in range(model.config.num_layers) if "{layer}" in row.theirs else ["0"]:
            theirs, ours = (name.replace("{layer}", str(layer)) for name in (row.theirs, row.ours))
            if ours in there:
                rows.append(row._replace(theirs=theirs, ours=ours))
    return rows


def _sizes(pattern: str, axes: Mapping[str, int]) -> dict[str, int]:
    return {name: axes[name] for name in ParsedExpression(pattern).identifiers}


def _shape(pattern: str, axes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that one side of a pattern describes: `"embed (heads head_dim)"` is (768, 12 * 64)."""
    return tuple(torch.Size(axes[name] for name in group).numel() for group in ParsedExpression(pattern).composition)


def _to_ours(tensor: Tensor, row: Weight, axes: Mapping[str, int]) -> Tensor:
    return rearrange(tensor, row.axes, **_sizes(row.our_axes, axes)) if "->" in row.axes else tensor


def _to_theirs(tensor: Tensor, row: Weight, axes: Mapping[str, int]) -> Tensor:
    if "->" not in row.axes:
        return tensor
    return rearrange(tensor, f"{row.our_axes} -> {row.their_axes}", **_sizes(row.our_axes, axes))


def _place(
    stored: list[Stored], row: Weight, axes: Mapping[str, int], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Read a weight into our layout: straight into place where their layout is another view of the same memory."""
    whole = torch.empty(_shape(row.our_axes, axes), dtype=dtype, device=device)
    for one, ours in zip(stored, whole if len(stored) > 1 else [whole], strict=True):
        theirs = _to_theirs(ours, row.each, axes)
        one.copy_to(theirs)
        if theirs.untyped_storage().data_ptr() != ours.untyped_storage().data_ptr():
            ours.copy_(_to_ours(theirs, row.each, axes))
    return whole


def _build(
    cls: type[Any],
    config: Any,
    stored: Mapping[str, Stored],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    where: str,
) -> Any:
    """A model with the stored weights, or an error that lists everything that does not fit."""
    model = without_memory(cls, config)
    rows = _fitting(model, stored, where)
    dtype = dtype or functools.reduce(torch.promote_types, {stored[name].dtype for names, _ in rows for name in names})
    state: dict[str, Tensor] = {}
    for names, row in rows:
        state[row.ours] = _place([stored[name] for name in names], row, config.axes, dtype, device or "cpu")
    for _, row in rows:
        if row.tied_to is not None and config.tie_embeddings:
            if torch.equal(state[row.ours], state[row.tied_to]):
                del state[row.ours]
            else:  # a head of its own, whatever the configuration says: the reference keeps it too
                model = without_memory(cls, dataclasses.replace(config, tie_embeddings=False))
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    for known in places.values():
        filled = nn.Parameter(next(state[name] for name in known if name in state))
        for owner, _, leaf in (name.rpartition(".") for name in known):
            setattr(model.get_submodule(owner), leaf, filled)
    return model.to(device or "cpu").eval()


def without_memory(model_class: type[Any], config: Any) -> Any:
    """A model whose weights have shapes and nothing else; none are drawn."""
    with torch.device("meta"), _Undrawn():
        return model_class(config)


class _Undrawn(TorchFunctionMode):
    """Skip drawing initial weights: the meta device has none, and asking it imports PyTorch's compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


def _today(name: str, endings: Mapping[str, str]) -> str:
    """A weight's name with the ending that newer files have."""
    for old, new in endings.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _fitting(model: Checkpointed, stored: Mapping[str, Stored], where: str) -> list[tuple[list[str], Weight]]:
    """Each row of the table with the stored names that it stands for, once all names and all rows are accounted for."""
    form, config = model.format, model.config
    names = {_today(name.removeprefix(form.prefix), form.endings): name for name in stored}
    rows = _rows(model)
    table = {name: row for row in rows for name in row.names(config.axes)}
    ignored = [re.compile(re.escape(name).replace(r"\{layer\}", r"\d+")) for name in form.ignored_weights]
    faults = [
        f"twice, with and without {form.prefix}: {name}"
        for name in stored
        if form.prefix and form.prefix + name in stored
    ]
    for theirs, row in table.items():
        if theirs not in names:
            if row.tied_to is None or not config.tie_embeddings:
                faults.append(f"missing: {theirs} (for {row.ours})")
            continue
        one, expected = stored[names[theirs]], _shape(row.each.their_axes, config.axes)
        if one.shape != expected:
            faults.append(f"misshapen: {names[theirs]} is {one.shape}, expected {expected}: axes {row.each.their_axes}")
        if not one.dtype.is_floating_point:
            faults.append(f"not floating-point: {names[theirs]} is {one.dtype}")
    faults += [
        f"surplus: {original}"
        for name, original in names.items()
        if name not in table and not any(pattern.fullmatch(name) for pattern in ignored)
    ]
    if faults:
        shown = faults[:20] + ([f"... and {len(faults) - 20} more"] if len(faults) > 20 else [])
        raise CheckpointError("\n  ".join([f"the weights of {where} do not fit {type(model).__name__}:", *shown]))
    found = [([names[theirs] for theirs in row.names(config.axes) if theirs in names], row) for row in rows]
    return [(present, row) for present, row in found if present]


def is_hub_name(name: str | Path) -> bool:
    """Whether a checkpoint's name can only mean a model on the hub: nothing lies there, and it is not a path."""
    path = Path(name)
    is_path = isinstance(name, Path) or path.is_absolute() or name.startswith(".") or name.count("/") > 1
    return name != "bundled" and not is_path and not path.exists()


def locate(name: str | Path, revision: str | None = None) -> Callable[[str], Path | None]:
    """A function from a file's name to where it lies on this machine, or None if the checkpoint has no such file.

    Args:
        name: a folder, a model's name on the hub, or "bundled" for the model that comes with this package.
        revision: a branch, tag or commit on the hub.

    Raises:
        CheckpointError: there is no such folder (or, when the function is called, no such model on the hub).
    """
    folder = BUNDLED if name == "bundled" else Path(name)
    if folder.is_dir():
        return lambda file: folder / file if (folder / file).is_file() else None
    if folder.is_file():
        raise CheckpointError(f"{name} is a file: give the folder that holds it")
    if not is_hub_name(name):
        raise CheckpointError(f"there is no folder {name}")
    return functools.partial(_download, str(name), revision)


def _download(name: str, revision: str | None, file: str) -> Path | None:
    """Fetch one file of a model on the hub, or find it in the hub's cache."""
    from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, try_to_load_from_cache

    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        if try_to_load_from_cache(name, file, revision=revision) is _CACHED_NO_EXIST:  # known not to be there
            return None
        raise CheckpointError(
            f"{name} is neither a folder here nor in the hub's cache, and the Hugging Face hub cannot be reached"
        ) from error
    except errors.RemoteEntryNotFoundError:
        return None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        at = f" with revision {revision}" if revision else ""
        raise CheckpointError(f"{name}{at} is neither a folder here nor a model on the Hugging Face hub") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"downloading {file} of {name} failed: {error}") from error


def require(find: Callable[[str], Path | None], file: str, name: str | Path) -> Path:
    """Where a file of a checkpoint lies.

    Raises:
        CheckpointError: the checkpoint has no such file.
    """
    path = find(file)
    if path is None:
        raise CheckpointError(f"{name} has no {file}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: it is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object, not a {type(content).__name__}")
    return content


def _open_weights(find: Callable[[str], Path | None], name: str | Path) -> dict[str, Stored]:
    """All tensors of a checkpoint, unread: of one file or of several listed in an index; safetensors if there are."""
    for file, read in (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_pickle)):
        path = find(file)
        if path is not None:
            return read(path)
        index = find(f"{file}.index.json")
        if index is not None:
            return _open_shards(index, find, read, name)
    raise CheckpointError(f"{name} has neither model.safetensors nor pytorch_model.bin, whole or in shards")


def _open_shards(
    index: Path,
    find: Callable[[str], Path | None],
    read: Callable[[Path], dict[str, Stored]],
    name: str | Path,
) -> dict[str, Stored]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index} has no weight_map from weights to files")
    shards: dict[str, dict[str, Stored]] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r}, which is not a plain file name")
        shards[file] = read(require(find, file, name))
    absent = sorted(weight for weight, file in places.items() if weight not in shards[file])
    if absent:
        raise CheckpointError(f"{name}: {', '.join(absent)} should be in a shard by {index.name} but is not")
    return {weight: one for shard in shards.values() for weight, one in shard.items()}


def _open_safetensors(path: Path) -> dict[str, Stored]:
    stored = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                dtype = (part[:0] if shape else file.get_tensor(name)).dtype
                stored[name] = Stored(shape, dtype, functools.partial(_copy_safetensor, path, name))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from error
    return stored


def _copy_safetensor(path: Path, name: str, place: Tensor) -> None:
    """Read one tensor into its place, piece by piece.

    The file is mapped, and a page of it counts as this process's memory from its first touch until the file is closed:
    reading pieces of 16 MiB with the file closed in between keeps that from doubling what loading takes.
    """
    rows = max(1, _PIECE * len(place) // max(1, place.nbytes))
    for start in range(0, len(place), rows):
        with safe_open(path, framework="pt") as file:
            place[start : start + rows].copy_(file.get_slice(name)[start : start + rows])


def _open_pickle(path: Path) -> dict[str, Stored]:
    try:
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, and reading that could run code: refused. "
            "Ask for the checkpoint as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} should hold a dictionary of tensors")
    return {name: _in_memory(tensor) for name, tensor in state.items()}


def _in_memory(tensor: Tensor) -> Stored:
    return Stored(tuple(tensor.shape), tensor.dtype, lambda place: place.copy_(tensor))
