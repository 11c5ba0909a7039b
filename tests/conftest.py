"""What all tests share: perturbed models, the reference in true float64, and data that may lie beside the checkout."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch
from torch import nn

torch.set_num_threads(1)  # models this small only lose by sharing the work, and tests may run beside other things

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Data that may lie beside the checkout; tests that want it skip where it is absent."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def perturb(model: nn.Module, std: float = 0.2) -> nn.Module:
    """Add noise to every parameter, in place.

    A fresh model has zero biases and norms of one: whole classes of mistakes change nothing in it.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return model


@contextlib.contextmanager
def true_float64() -> Iterator[None]:
    """Make the reference compute in float64 throughout: it casts to float32 by name inside softmax, norms and masks.

    Wrap both the construction and the forward pass of the reference, and nothing of ours.
    """
    saved = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float, default = saved  # type: ignore[method-assign]
        torch.set_default_dtype(default)


@pytest.fixture
def gpt2_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's vocabulary from a cache that lies beside the checkout; skips the test where there is none."""
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR", SHARED / "tiktoken-cache"))
    if not cache.is_dir():
        pytest.skip(f"GPT-2's vocabulary is not cached at {cache}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
