"""A configuration holds what its fields' types allow, and nothing else; a row of sizes makes one."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from allformers.models.llama.llama import LlamaConfig
from allformers.models.mistral.mistral import MistralConfig
from allformers.nn.config import Configuration, Count, EvenCount, Positive, Preset, Probability, Whole, one_of


@dataclass(frozen=True, kw_only=True)
class Example(Configuration):
    """One field of every kind."""

    count: Count = 3
    whole: Whole = 0
    even: EvenCount = 4
    positive: Positive = 1.0
    chance: Probability = 0.5
    switch: bool = True
    fixed: Literal[False] = False
    kind: Literal["plain", "fancy"] = "plain"
    named: Annotated[str, one_of({"one": 1, "two": 2})] = "one"
    maybe: Count | None = None
    several: tuple[Literal["plain", "fancy"], ...] = ()

    small = Preset("nowhere", 12, count=7)


@pytest.mark.parametrize(
    ("field", "bad", "message"),
    [
        ("count", [0, -1, 1.0, True, "3", None], "count must be a whole number of at least 1, not "),
        ("whole", [-1, 0.5], "whole must be a whole number of at least 0, not "),
        ("even", [0, 3, 4.0], "even must be an even number of at least 2, not "),
        ("positive", [0, -1.0, math.nan, "1", True], "positive must be a number above 0, not "),
        ("chance", [-0.1, 1, math.nan], "chance must be a probability, at least 0 and below 1, not "),
        ("switch", [1, None, "True"], "switch must be True or False, not "),
        ("fixed", [True, 0], "fixed must be False, not "),
        ("kind", ["plainer", None], "kind must be one of plain, fancy, not "),
        ("named", ["three", 1], "named must be one of one, two, not "),
        ("maybe", [0, "none"], "maybe must be a whole number of at least 1 or None, not "),
        ("several", [["plain"], ("plainer",)], "several must be a tuple, each one of plain, fancy, not "),
    ],
)
def test_what_does_not_fit_its_type_is_refused_with_what_would(field: str, bad: list[Any], message: str) -> None:
    for value in bad:
        with pytest.raises(ValueError, match=message) as refusal:
            Example(**{field: value})
        assert str(refusal.value) == f"{message}{value!r}"


def test_what_fits_is_taken() -> None:
    good: dict[str, list[Any]] = {"positive": [1, 1e-12], "chance": [0, 0.999], "maybe": [None, 4], "kind": ["fancy"]}
    for field, values in good.items():
        for value in values:
            assert getattr(Example(**{field: value}), field) == value
    assert Example(several=("plain", "fancy")).several == ("plain", "fancy")


def test_a_row_makes_the_configuration_of_the_class_that_is_asked() -> None:
    assert Example.small() == Example(count=7)
    assert Example.presets().keys() == Example.published().keys() == {"small"}
    assert Example.presets()["small"]() == Example.small()
    assert Example.published()["small"].parameters == 12
    assert type(LlamaConfig.llama3_1_8b()) is LlamaConfig
    assert type(MistralConfig.llama2_7b()) is MistralConfig  # a Mistral of Llama's size
    assert "llama2_7b" not in MistralConfig.presets()


def test_sizes_are_compared_by_name() -> None:
    with pytest.raises(ValueError, match="count 5 cannot be shared out evenly: make it a multiple of even 4"):
        Example(count=5).divides("count", "even")
    with pytest.raises(ValueError, match=r"positive 1.0 must be above count 3"):
        Example().exceeds("positive", "count")
