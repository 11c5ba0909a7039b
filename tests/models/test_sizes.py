"""Sizes: each row of a table has its number of parameters, and each size takes changes of any field."""

import collections
import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from allformers.checkpoints.loading import empty_model
from allformers.checkpoints.tables import Size
from allformers.cli.console import find_presets
from allformers.models.registry import READING_ORDER, Entry, class_for, entry_for
from conftest import names

ROWS = [pytest.param(size, id=size.name) for entry in READING_ORDER for size in entry.sizes()]

CONFIGS = [
    model_class.checkpoint_format().config_class
    for entry in READING_ORDER
    for model_class in (entry.load(), *entry.load().checkpoint_format().variants())
]


def parameters(config: Any) -> int:
    """The number of parameters of a model, which is built without memory."""
    return sum(parameter.numel() for parameter in empty_model(class_for(config), config).parameters())


def class_methods(config_class: type) -> Iterator[str]:
    """The class methods that make a size: the model's own, which its variants share."""
    for base in config_class.__mro__:
        if base.__module__.rpartition(".")[0] == config_class.__module__.rpartition(".")[0]:
            yield from (name for name, member in vars(base).items() if isinstance(member, classmethod))


@pytest.mark.parametrize("size", ROWS)
def test_each_row_has_its_number_of_parameters(size: Size) -> None:
    assert parameters(size.config) == size.parameters


@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_commands_list_a_models_own_sizes_and_the_first_is_the_smallest(entry: Entry) -> None:
    config_class = entry.load().checkpoint_format().config_class
    first, *others = entry.sizes()
    assert first.config == config_class.tiny()
    assert min(entry.sizes(), key=lambda size: size.parameters) is first
    assert not first.hub_name
    elsewhere = {"bundled", "stories-15m", "llama1-7b"}  # in this package, or in other formats
    assert all(size.hub_name for size in others if size.name not in elsewhere)
    for size in entry.sizes():
        assert type(size.config) is config_class
        assert entry_for(size.config) is entry
        assert find_presets()[size.name] == (entry.load(), size.config)


def test_no_name_stands_for_two_sizes() -> None:
    counts = collections.Counter(size.name for entry in READING_ORDER for size in entry.sizes())
    assert set(counts.values()) == {1}
    assert find_presets().keys() == counts.keys()


@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_each_class_method_is_a_row_and_says_its_number_of_parameters(entry: Entry) -> None:
    config_class = entry.load().checkpoint_format().config_class
    for name in class_methods(config_class):
        (row,) = (size for size in entry.sizes() if size.config == getattr(config_class, name)())
        said = re.match(r"[\d,]+", inspect.getdoc(getattr(config_class, name)) or "")
        assert said is not None, name
        assert int(said[0].replace(",", "")) == row.parameters, name


def other_values(value: Any, num_layers: int) -> list[Any]:
    """Values to put in the place of one; some are allowed there, and some are not."""
    if isinstance(value, bool):
        return [not value, 1]
    if isinstance(value, int):
        return [value + 1, 2 * value, 1, 0, True]
    if isinstance(value, float):
        return [value / 2, 3, 0.0, -1.0, float("nan"), float("inf")]
    if isinstance(value, str):
        return ["relu", "linear", "default", "yarn", "no such", None]
    return [None, 7, 0, ("full_attention",) * num_layers, ("full_attention",) * (num_layers + 1), "no such"]


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda config_class: config_class.__name__)
def test_each_size_takes_a_change_of_each_field_or_refuses_it_by_name(config_class: Any) -> None:
    taken = set()
    for name in class_methods(config_class):
        size = getattr(config_class, name)
        base = size()
        assert type(base) is config_class
        for field in dataclasses.fields(config_class):
            for value in other_values(getattr(base, field.name), base.num_layers):
                try:
                    changed = size(**{field.name: value})
                except ValueError as error:
                    assert re.search(names(field.name), str(error)), (name, field.name, value, error)  # noqa: PT017
                else:
                    assert type(changed) is config_class
                    assert getattr(changed, field.name) == value
                    others = dataclasses.asdict(changed).items() - dataclasses.asdict(base).items()
                    assert {key for key, _ in others} <= {field.name}, (name, field.name)
                    taken.add(field.name)
        with pytest.raises(TypeError, match="no_such_field"):
            size(no_such_field=1)
        assert size(num_layers=base.num_layers + 1, norm_eps=0.5).norm_eps == 0.5
    hints = get_type_hints(config_class)  # a Literal of one value cannot be changed
    fixed = {name for name, hint in hints.items() if get_origin(hint) is Literal and len(get_args(hint)) == 1}
    assert {field.name for field in dataclasses.fields(config_class)} - taken <= fixed
