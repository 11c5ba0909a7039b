"""A configuration holds what its fields' types allow, and nothing else."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from allformers.models.registry import READING_ORDER, Entry
from allformers.nn.config import (
    LARGEST_FLOAT,
    LARGEST_INT,
    Config,
    EvenWidth,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    one_of,
)


@dataclass(frozen=True, kw_only=True)
class Example(Config):
    """One field of every kind."""

    count: PositiveInt = 3
    whole: NonNegativeInt = 0
    even: EvenWidth = 4
    positive: PositiveFloat = 1.0
    number: float = 0.0
    chance: Probability = 0.5
    switch: bool = True
    fixed: Literal[False] = False
    kind: Literal["plain", "fancy"] = "plain"
    named: Annotated[str, one_of({"one": 1, "two": 2})] = "one"
    maybe: PositiveInt | None = None
    several: tuple[Literal["plain", "fancy"], ...] = ()


@pytest.mark.parametrize(
    ("field", "bad", "range_"),
    [
        ("count", [0, -1, 1.0, True, "3", None, LARGEST_INT + 1], "1"),
        ("whole", [-1, 0.5, False, LARGEST_INT + 1], "0"),
        ("even", [0, 3, 4.0, 2**20 + 2], "2"),
        ("positive", [0, -1.0, math.nan, math.inf, 2 * LARGEST_FLOAT, "1", True], "0"),
        ("number", [math.nan, math.inf, -math.inf, True, "1", None], "number"),
        ("chance", [-0.1, 1, math.nan], "0"),
        ("switch", [1, None, "True"], "True or False"),
        ("fixed", [True, 0], "False"),
        ("kind", ["plainer", None], "plain, fancy"),
        ("named", ["three", 1], "one, two"),
        ("maybe", [0, "none"], "None"),
        ("several", [["plain"], ("plainer",)], "plain, fancy"),
    ],
)
def test_what_does_not_fit_its_type_is_refused_with_what_would(field: str, bad: list[Any], range_: str) -> None:
    for value in bad:
        with pytest.raises(ValueError, match=f"^{field} .*{range_}.*{re.escape(repr(value))}"):
            Example(**{field: value})


@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_every_size_of_every_model_has_an_upper_bound(entry: Entry) -> None:
    """None is so large that a product of sizes overflows, or that to build the model takes minutes."""
    config = entry.load().checkpoint_format().config_class.tiny()
    for field in dataclasses.fields(config):
        if type(getattr(config, field.name)) in (int, float):
            for value in (10**13, 10**400, math.inf):
                with pytest.raises(ValueError, match=rf"^{field.name} must be ") as refusal:
                    dataclasses.replace(config, **{field.name: value})
                assert len(str(refusal.value)) < 200
    with pytest.raises(ValueError, match=r"num_layers .*1000.*1001"):
        dataclasses.replace(config, num_layers=1001)


def test_what_fits_is_taken() -> None:
    good: dict[str, list[Any]] = {
        "positive": [1, 1e-12, LARGEST_FLOAT],
        "chance": [0, 0.999],
        "maybe": [None, 4],
        "kind": ["fancy"],
    }
    for field, values in good.items():
        for value in values:
            assert getattr(Example(**{field: value}), field) == value
    assert Example(several=("plain", "fancy")).several == ("plain", "fancy")


def test_sizes_are_compared_by_name() -> None:
    with pytest.raises(ValueError, match=r"count 5 .*even 4"):
        Example(count=5).require_divisible("count", "even")
    with pytest.raises(ValueError, match=r"positive 1\.0 .*count 3"):
        Example().require_greater("positive", "count")
