"""Experiments that answer a learner's questions: each a question, numbers, a figure, and a sentence that they support.

    >>> from allformers.experiments import EXPERIMENTS
    >>> answer = EXPERIMENTS["scale"]().conclusion

Each runs in seconds on a processor, on the bundled model or on fresh ones. Conclusions are put together from the
numbers, so they say what was measured here and not what is usually said. A file of this folder holds one question.
"""

from collections.abc import Callable

from allformers.experiments.causal_mask import causal_mask
from allformers.experiments.experiment import Experiment
from allformers.experiments.kv_cache import kv_cache
from allformers.experiments.positions import positions
from allformers.experiments.pre_norm import pre_norm
from allformers.experiments.rotary import rotary
from allformers.experiments.sampling import sampling
from allformers.experiments.scale import scale
from allformers.experiments.shifted_targets import shifted_targets
from allformers.experiments.weight_tying import weight_tying

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    make.__name__.replace("_", "-"): make
    for make in (causal_mask, pre_norm, positions, rotary, shifted_targets, sampling, scale, kv_cache, weight_tying)
}
"""The experiments by the names that the command line uses."""
