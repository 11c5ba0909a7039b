"""Inference optimisation: `prepare` swaps linear layers, `unprepare` undoes it, `compile_steps` compiles decoding.

No model file knows of it.

>>> import allformers
>>> model = prepare(allformers.load("bundled"))  # faster, the same to rounding
>>> unprepare(model) is model
True
"""

from allformers.speed.linear import prepare, unprepare
from allformers.speed.steps import compile_steps

__all__ = ["compile_steps", "prepare", "unprepare"]
