"""A model's configuration, read from a `config.json` and written to one by its table of fields.

Every field that the reference reads is read with the reference's own default, or refused by name. In place of an
object null says nothing, as an empty object does; 0, "" and false are refused there.
"""

import re
from collections.abc import Mapping
from typing import Any

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.tables import REQUIRED, Accepted, Field, Format, Stated
from allformers.messages import shown, shown_name, warn


def read_config(form: Format, config_dict: Mapping[str, Any], where: str = "config.json") -> Any:
    """Read a model's configuration from the contents of a `config.json`.

    Raises:
        CheckpointError: another architecture, a field with which the model would be another one, a required field that
            is missing, two names of a field that disagree, or a value out of range; all of them at once.
    """
    if config_dict.get("model_type") not in (None, form.model_type):  # old files have none, and the caller has said it
        raise CheckpointError(
            f"{where}: model_type is {shown(config_dict.get('model_type'))}, but this is the class for "
            f"{form.model_type!r}"
        )
    faults: list[str] = []
    try:
        stated = _by_one_name(form.standardise(form, _flat(form, config_dict)), form.aliases, faults)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    for name, (accepted, reason) in form.unsupported_fields.items():
        one = stated.get(name)
        if one is not None and not _accepts(accepted, one.value):
            faults.append(f"{one.name} is {shown(one.value)}; only {accepted_words(accepted)} is supported: {reason}")

    ours: dict[str, Any] = {}
    said: dict[str, Stated] = {}
    without_effect: list[str] = []
    unused: list[tuple[str, Stated]] = []
    for field in form.fields:
        one = stated.get(field.theirs, Stated(field.theirs, REQUIRED))
        if not field.counts(ours):
            if one.value not in (REQUIRED, None):
                without_effect.append(
                    f"{one.name}, without effect where {field.when[0]} is {shown(ours[field.when[0]])}"
                )
            if field.otherwise is not None:
                ours[field.ours] = field.otherwise
            continue
        if one.value is REQUIRED or (one.value is None and field.null_is_missing):
            one = one._replace(value=_default(field, {name: other.value for name, other in stated.items()} | ours))
        if one.value is REQUIRED:
            condition = f" where {field.when[0]} is {shown(ours[field.when[0]])}" if field.when else ""
            faults.append(f"{one.name} is missing or null; it has no default{condition}")
            continue
        value = tuple(one.value) if isinstance(one.value, list) else one.value
        if field.ours in said and ours[field.ours] != value:
            if field.for_training:
                unused.append((field.ours, one._replace(value=value)))
                first = f"{said[field.ours].name} ({shown(ours[field.ours])})"
                without_effect.append(f"{one.name} ({shown(value)}), as training here has one {field.ours}, {first}")
                continue
            faults.append(
                f"{said[field.ours].name} is {shown(ours[field.ours])} but {one.name} is {shown(value)}; here both are "
                f"{field.ours}, so make them equal"
            )
        ours.setdefault(field.ours, value)
        said.setdefault(field.ours, one)
    if not faults:
        config = _make(form, ours, said, faults)
        for name, one in unused:  # it must be a value that could be used
            _make(form, ours | {name: one.value}, {name: one}, faults)
        if not faults:
            _warn_of_ignored(form, stated, without_effect, where)
            return config
    raise CheckpointError("\n  ".join([f"{where} does not describe a model that can be built here:", *faults]))


def _accepts(accepted: Any, value: Any) -> bool:
    """True if a field that is mostly refused has a value that is not; see `Format.unsupported_fields`."""
    if isinstance(accepted, Accepted):
        return accepted.holds(value)
    return any(_same(value, choice) for choice in _choices(accepted))


def _choices(accepted: Any) -> tuple[Any, ...]:
    return accepted if isinstance(accepted, tuple) else (accepted,)


def accepted_words(accepted: Any) -> str:
    """What is accepted of a field that is mostly refused, in words."""
    return accepted.words if isinstance(accepted, Accepted) else " or ".join(map(repr, _choices(accepted)))


def _make(form: Format, ours: Mapping[str, Any], said: Mapping[str, Stated], faults: list[str]) -> Any:
    """Make the configuration, or note its complaint, with the names that its fields have in the file."""
    try:
        return form.config_class(**ours)
    except (ValueError, TypeError) as error:
        named = [one.name for name, one in said.items() if re.search(rf"\b{name}\b", str(error))]
        faults.append(f"{error} ({', '.join(named)})")


def _default(field: Field, known: Mapping[str, Any]) -> Any:
    """The default of a field. None where a value that it depends on is none to compute with, which is refused later."""
    try:
        return field.default(known) if callable(field.default) else field.default
    except (TypeError, ArithmeticError):
        return None


def _flat(form: Format, config_dict: Mapping[str, Any]) -> dict[str, Stated]:
    """What a file states: each field by its name, those inside an object with a dot in their names."""
    stated = {(repr(name) if "." in name else name): Stated(name, value) for name, value in config_dict.items()}
    for name in form.objects:
        value = stated.pop(name, Stated(name, None)).value
        if not isinstance(value, Mapping | None):
            raise CheckpointError(f"{name} should be an object, not {shown(value)}")
        for key, one in (value or {}).items():
            if isinstance(one, Mapping) and f"{name}.{key}" not in form.objects:
                raise CheckpointError(
                    f"{name}.{shown_name(key)} is an object; {form.architecture} has no such object in {name}"
                )
            stated[f"{name}.{key}"] = Stated(f"{name}.{key}", one)
    return stated


def _by_one_name(stated: Mapping[str, Stated], aliases: Mapping[str, str], faults: list[str]) -> dict[str, Stated]:
    """The fields under the names that the table has; two names of one field must agree, and null agrees with all."""
    renamed = {name: one for name, one in stated.items() if name not in aliases}
    for alias, name in aliases.items():
        one, other = stated.get(alias), renamed.get(name)
        if one is None:
            continue
        if other is None or other.value is None:
            renamed[name] = one
        elif one.value is not None and not _same(one.value, other.value):
            faults.append(
                f"{one.name} is {shown(one.value)} but {other.name} is {shown(other.value)}; both are names of one "
                "field, so make them equal or leave one out"
            )
    return renamed


def _same(value: Any, other: Any) -> bool:
    """True for equal values; a bool is no number."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _warn_of_ignored(form: Format, stated: Mapping[str, Stated], without_effect: list[str], where: str) -> None:
    """Warn once of what is not read, because the reference does not read it either."""
    known = {field.theirs for field in form.fields} | set(form.ignored_fields) | set(form.unsupported_fields)
    unknown = sorted(
        shown_name(one.name) for name, one in stated.items() if name not in known and one.value is not None
    )
    ignored = [f"{name}, which no {form.model_type} configuration has in the reference" for name in unknown]
    if ignored or without_effect:
        warn(f"{where}: ignoring {'; '.join([*ignored, *without_effect])}")


def write_config(form: Format, config: Any) -> dict[str, Any]:
    """The contents of a `config.json` for a model's configuration."""
    fields: dict[str, Any] = {}
    for field in form.fields:
        if not field.counts(vars(config)):
            continue
        value = getattr(config, field.ours)
        if value is None and (field.default is None or field.null_is_missing):
            continue  # a field that is missing says the same
        *outer, name = field.theirs.split(".")
        target = fields
        for key in outer:
            target = target.setdefault(key, {})
        target[name] = list(value) if isinstance(value, tuple) else value
    return {"model_type": form.model_type, "architectures": [form.architecture], **fields, **form.extra_config(config)}
