"""Inspection of models: `summarise` parts and cost, `capture` activations, `trace` operations, compare runs.

The models know nothing of this. Their code says what each tensor's axes are, in annotations and in einops patterns, and
that is all that is needed to find them.
"""

from allformers.inspection.capture import Activations, NamedTensor, ablate_heads, activation_names, capture, patch
from allformers.inspection.compare import compare_models, compare_texts, run
from allformers.inspection.summary import EvenRouting, ModuleCost, Summary, meta_model, summarise
from allformers.inspection.trace import Operation, Trace, trace

__all__ = [
    "Activations",
    "EvenRouting",
    "ModuleCost",
    "NamedTensor",
    "Operation",
    "Summary",
    "Trace",
    "ablate_heads",
    "activation_names",
    "capture",
    "compare_models",
    "compare_texts",
    "meta_model",
    "patch",
    "run",
    "summarise",
    "trace",
]
