"""What messages quote from outside is short, on one line, and never fails to be written."""

from typing import Any

import pytest

from allformers.messages import LONGEST, escaped, shown, shown_name, shown_names


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        "\x1b[2J\n" * 50,
        "\ud800\0",
        b"\0" * 1000,
        10**5000,
        [1] * 10**6,
        nested(5000),
        {"k" * 999: "v" * 999},
    ],
    ids=["long", "control characters", "half a character", "bytes", "digits", "list", "nested", "dictionary"],
)
def test_any_value_is_shown_on_one_line_of_at_most_80_letters(value: Any) -> None:
    for text in (shown(value), shown_name(value) if isinstance(value, str) else ""):
        assert len(text) <= LONGEST == 80
        assert text.isprintable()


def test_what_is_short_is_shown_as_python_writes_it() -> None:
    for value in (None, True, -3, 1e-6, "gelu", [1, "a"], {"a": (1, 2)}, 2**63):
        assert shown(value) == repr(value)
    assert shown_name("h.0.attn.bias") == "h.0.attn.bias"
    assert escaped("wörter\tund\n") == "wörter\\tund\\n"


def test_a_list_of_names_says_how_many_it_leaves_out() -> None:
    assert shown_names(["a", "b"]) == "a, b"
    assert shown_names(map(str, range(1000))).endswith("18, 19 and 980 more")
