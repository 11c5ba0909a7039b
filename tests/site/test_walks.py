"""Every statement of a module that a page walks through is in one step; seen in the Markdown, without a build."""

from pathlib import Path

import pytest

from docs.engine import PAGES
from docs.engine.record import Module
from docs.engine.walk import faults

pytestmark = pytest.mark.site

WALKED = [page for page in sorted(PAGES.rglob("*.md")) if "//// walk |" in page.read_text(encoding="utf-8")]

PAGE = """
//// walk | allformers.nn.masks

/// step | Causal
    code: 'causal_mask'
Prose.
///

/// step | Padding
    code: 'padding_mask'
///

////
"""


@pytest.mark.parametrize("page", WALKED, ids=lambda page: page.stem)
def test_a_page_explains_all_that_it_walks_through(page: Path) -> None:
    assert faults(page.read_text(encoding="utf-8")) == []


def test_a_comment_belongs_to_what_follows_it_with_empty_lines_between_or_not() -> None:
    source = """import math

# About the constant.

X = 1


class A:
    # About the method.

    def f(self):
        # First.

        y = 1

        # Second.
        return y

    # About the other.
    # Two lines.

    def g(self):
        return 2
"""
    module = Module("allformers.nn.masks", source)
    shown = [line for unit in module.units for line in range(unit.first, unit.last + 1)]
    written = {number for number, line in enumerate(source.splitlines(), 1) if line.strip()} - {1}
    assert written <= set(shown)
    assert len(shown) == len(set(shown))


def test_what_a_walk_leaves_out_or_says_twice_is_found() -> None:
    assert faults(PAGE) == []
    assert faults(f"````markdown\n{PAGE}````\n") == []
    left_out = faults(PAGE.replace("'padding_mask'", "'padding_mask: head'"))
    assert left_out
    assert all("padding_mask" in fault for fault in left_out)
    (moved,) = [fault for fault in faults(PAGE.replace("'padding_mask'", "'no_mask'")) if "step 'Padding'" in fault]
    assert "no_mask" in moved
    twice = faults(PAGE.replace("'padding_mask'", "'padding_mask; causal_mask'"))
    assert twice
    assert all("'Causal'" in fault and "'Padding'" in fault for fault in twice)
