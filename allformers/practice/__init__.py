"""A course on the learner's own machine: write each part of a transformer, and have it checked.

On the command line `allformers practice`; in a notebook:

    from allformers.practice import check

    check(causal_mask)                 # a function or class that is called as in its exercise
    check("attention", MyAttention)    # or whatever it is called
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allformers.practice.report import Report


def check(*given: Any) -> "Report":
    """Check a function or class that is alive, as in a notebook. The report shows itself; `.passed` says how it ended.

    Args:
        given: the function or class, after the exercise's name if it is not called as in its exercise.

    Raises:
        ValueError: it is not clear which exercise is meant.
    """
    from allformers.practice.live import check_live

    return check_live(*given)
