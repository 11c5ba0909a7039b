"""A configuration holds what its fields' types allow, and nothing else; a row of sizes makes one."""

import math
import re
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
    ("field", "bad", "range_"),
    [
        ("count", [0, -1, 1.0, True, "3", None], "1"),
        ("whole", [-1, 0.5], "0"),
        ("even", [0, 3, 4.0], "2"),
        ("positive", [0, -1.0, math.nan, "1", True], "0"),
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
    with pytest.raises(ValueError, match=r"count 5 .*even 4"):
        Example(count=5).divides("count", "even")
    with pytest.raises(ValueError, match=r"positive 1\.0 .*count 3"):
        Example().exceeds("positive", "count")
