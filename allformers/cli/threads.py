"""The number of threads of a command: one for small products, all for large ones.

Threads that share a matrix product wait for one another after it. In a small product the wait takes longer than the
work, and if another program keeps one of the cores busy, all wait for the thread that has no core. So a command uses
one thread where products are small. Where they are large, waiting threads sleep, and leave their cores to others.

Only the commands choose. The library leaves PyTorch's settings alone, and `OMP_NUM_THREADS` and `OMP_WAIT_POLICY` in
the environment have precedence.
"""

import functools
import os
import sys
from typing import Any

_MIN_PARALLEL_MACS = 2**19
"""The fewest multiply-accumulates (MACs) of a product for which several threads are faster; measured with two."""


def set_passive_wait_policy() -> None:
    """Set OpenMP's wait policy so that waiting threads sleep; this has an effect only before PyTorch is imported."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def set_threads_for(macs: float) -> None:
    """Set the number of threads by the size of the work, unless the environment says how many.

    Args:
        macs: multiply-accumulates of one matrix product, with all rows that it has at once.
    """
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        return
    default = _default_num_threads()
    num_threads = 1 if macs < _MIN_PARALLEL_MACS else default
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)


def mean_macs_per_row(model: Any) -> float:
    """Multiply-accumulates of one row in a linear layer of a model, on average."""
    from torch import nn

    sizes = [layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear)]
    return sum(sizes) / max(1, len(sizes))


@functools.cache
def _default_num_threads() -> int:
    """PyTorch's own number of threads, read once before it is changed."""
    import torch

    return torch.get_num_threads()
