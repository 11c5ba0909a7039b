"""Speed without a word in the models: `prepare`, undone by `unprepare`, and `compile_steps` for decoding.

>>> import allformers
>>> model = prepare(allformers.load("bundled"))  # faster, the same to rounding
>>> unprepare(model) is model
True
"""

from allformers.speed.linear import prepare, unprepare
from allformers.speed.steps import compile_steps

__all__ = ["compile_steps", "prepare", "unprepare"]
