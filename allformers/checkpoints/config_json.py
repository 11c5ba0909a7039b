"""A model's configuration, read from a `config.json` and written to one by its table of fields."""

import warnings
from collections.abc import Mapping
from typing import Any

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.tables import Format


def read_config(form: Format, config_dict: Mapping[str, Any], where: str = "config.json") -> Any:
    """Read a model's configuration from the contents of a `config.json`.

    Raises:
        CheckpointError: another architecture, a field with which the model would be another one, or a value out of
            range; all of them at once.
    """
    if config_dict.get("model_type") not in (None, form.model_type):  # old files have none, and the caller has said it
        raise CheckpointError(
            f"{where}: model_type is {config_dict.get('model_type')!r}, but this is the class for {form.model_type!r}"
        )
    config_dict = _renamed(_flat(_renamed(config_dict, form.aliases), form), form.aliases)
    faults: list[str] = []
    for name, (accepted, reason) in form.unsupported_fields.items():
        if config_dict.get(name, accepted) != accepted:
            faults.append(f"{name} is {config_dict[name]!r}; only {accepted!r} is supported: {reason}")
    known = {field.theirs for field in form.fields} | set(form.ignored_fields) | set(form.unsupported_fields)
    unknown = sorted(set(config_dict) - known)
    if unknown:
        warnings.warn(
            f"{where}: ignoring {', '.join(unknown)}, unknown to the reference implementation too", stacklevel=3
        )
    ours: dict[str, Any] = {}
    theirs_of: dict[str, str] = {}
    for field in form.fields:
        value = config_dict.get(field.theirs)
        value = tuple(value) if isinstance(value, list) else value
        if value is None:
            value = field.default({**config_dict, **ours}) if callable(field.default) else field.default
        if field.ours in ours and ours[field.ours] != value:
            faults.append(
                f"{theirs_of[field.ours]} is {ours[field.ours]!r} but {field.theirs} is {value!r}; here both are "
                f"{field.ours}, so make them equal"
            )
        ours.setdefault(field.ours, value)
        theirs_of.setdefault(field.ours, field.theirs)
    if not faults:
        try:
            return form.config_class(**ours)
        except (ValueError, TypeError) as error:
            named = [theirs for name, theirs in theirs_of.items() if name in str(error)]
            faults.append(f"{error} ({', '.join(named)})")
    raise CheckpointError("\n  ".join([f"{where} does not describe a model that can be built here:", *faults]))


def _renamed(config_dict: Mapping[str, Any], aliases: Mapping[str, str]) -> Mapping[str, Any]:
    """The fields under the names that the table has."""
    for alias, name in aliases.items():
        if alias in config_dict:
            config_dict = {
                name: config_dict[alias],
                **{key: value for key, value in config_dict.items() if key != alias},
            }
    return config_dict


def _flat(config_dict: Mapping[str, Any], form: Format) -> Mapping[str, Any]:
    """Fields of a nested object as fields of their own, with a dot in their names, where the table has such."""
    nested = {field.theirs.rpartition(".")[0] for field in form.fields} - {""}
    nested |= {name.partition(".")[0] for name in nested}
    while inner := {name: value for name, value in config_dict.items() if name in nested and (value is None or value)}:
        config_dict = {name: value for name, value in config_dict.items() if name not in nested}
        for name, value in inner.items():
            if not isinstance(value, Mapping | None):
                raise CheckpointError(f"{name} should be an object, not {value!r}")
            config_dict |= {f"{name}.{key}": one for key, one in (value or {}).items()}
    return config_dict


def write_config(form: Format, config: Any) -> dict[str, Any]:
    """The contents of a `config.json` for a model's configuration."""
    fields: dict[str, Any] = {}
    for field in form.fields:
        if not field.is_written(config):
            continue
        *outer, name = field.theirs.split(".")
        target = fields
        for key in outer:
            target = target.setdefault(key, {})
        value = getattr(config, field.ours)
        target[name] = list(value) if isinstance(value, tuple) else value
    return {"model_type": form.model_type, "architectures": [form.architecture], **fields, **form.extra_config(config)}
