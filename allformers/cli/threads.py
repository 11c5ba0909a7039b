"""How many threads a command computes with: one for little work, all for much.

Threads that share a product wait for one another after each. Of a small product the wait takes longer than the work,
and if another program keeps one of the cores busy, all wait for the thread that has no core. So a command uses one
thread where a product is small. Where it is large, threads that wait sleep, and leave their cores to whoever has work.

Only the commands choose. The library leaves PyTorch's settings alone, and `OMP_NUM_THREADS` and `OMP_WAIT_POLICY` in
the environment come before what is chosen here.
"""

import functools
import os
import sys
from typing import Any

_WORTH_SHARING = 2**19
"""Multiplications in a product from which on several threads are faster than one, measured with two."""


def let_waiting_threads_sleep() -> None:
    """Have threads sleep while they wait; it counts only if PyTorch has not been imported yet."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def choose_threads(products: float) -> None:
    """Set the number of threads by the size of the work, unless the environment says how many.

    Args:
        products: multiplications in one product of a matrix with the rows that go through it at once.
    """
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        return
    everyone = _threads_of_pytorch()
    wanted = 1 if products < _WORTH_SHARING else everyone
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def mean_product(model: Any) -> float:
    """Multiplications that one row takes in a linear layer of a model, on average."""
    from torch import nn

    sizes = [layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear)]
    return sum(sizes) / max(1, len(sizes))


@functools.cache
def _threads_of_pytorch() -> int:
    """The number of threads that PyTorch took by itself, asked for once, before it is changed."""
    import torch

    return torch.get_num_threads()
