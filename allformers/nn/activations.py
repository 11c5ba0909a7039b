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
        "gelu_python": F.gelu,
        "gelu_new": partial(F.gelu, approximate="tanh"),
        "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
        "gelu_python_tanh": partial(F.gelu, approximate="tanh"),
        "gelu_fast": partial(F.gelu, approximate="tanh"),
        "relu": F.relu,
        "silu": F.silu,
        "swish": F.silu,
    }
)
"""`gelu` and `gelu_python` are exact: x times the CDF of the standard normal distribution. `gelu_new`, `gelu_fast`,
`gelu_pytorch_tanh` and `gelu_python_tanh` are one function, its tanh approximation
0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). Source: Hendrycks and Gimpel 2016, arXiv:1606.08415. `swish` is
another name of `silu`."""

Activation = Annotated[str, one_of(ACTIVATIONS)]
"""The type of a configuration's field that names one."""
