"""Activation functions by the names that `config.json` files use (`hidden_act`)."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from allformers.nn.config import one_of

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_new": partial(F.gelu, approximate="tanh"),
        "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
        "relu": F.relu,
        "silu": F.silu,
    }
)
"""`gelu` is exact: x times the CDF of the standard normal distribution. `gelu_new` and `gelu_pytorch_tanh` are one
function, its tanh approximation 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). Source: Hendrycks and Gimpel 2016,
arXiv:1606.08415."""

Activation = Annotated[str, one_of(ACTIVATIONS)]
"""The type of a configuration's field that names one."""
