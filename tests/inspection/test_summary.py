"""The summary: its sums are the model's, and its FLOPs are the ones that can be counted by hand."""

import pytest
import torch

from allformers.inspection import summarise
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config

SMALL = GPT2Config.gpt2_small()


def test_parts_add_up_to_the_whole() -> None:
    summary = summarise(GPT2, SMALL)
    assert sum(part.parameters * part.copies for part in summary.modules) == summary.parameters == 124_439_808
    assert sum(part.flops_per_token * part.copies for part in summary.modules) == pytest.approx(summary.flops_per_token)


def test_flops_are_two_for_each_weight_and_token_plus_attention() -> None:
    summary = summarise(GPT2, SMALL)
    layer = 12 * SMALL.embedding_dim**2 + 2 * SMALL.context_length * SMALL.embedding_dim  # matrices; scores and mixing
    head = SMALL.vocab_size * SMALL.embedding_dim
    assert summary.flops_per_token == 2 * (SMALL.num_layers * layer + head)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_memory_follows_the_dtype(dtype: torch.dtype, size: int) -> None:
    summary = summarise(GPT2, SMALL, dtype)
    assert summary.weight_bytes == size * summary.parameters
    assert summary.cache_bytes_per_token == size * 2 * SMALL.num_layers * SMALL.embedding_dim


def test_every_weight_has_named_axes_of_its_own_sizes() -> None:
    for part in summarise(GPT2, GPT2Config.tiny()).modules:
        for named, shape in part.weights.values():
            axes = named.replace("(", "").replace(")", "").split()
            sizes = [GPT2Config.tiny().axes[axis] for axis in axes]
            assert torch.Size(sizes).numel() == torch.Size(shape).numel()


def test_an_untied_head_has_parameters_of_its_own() -> None:
    config = GPT2Config(
        vocab_size=97,
        context_length=16,
        embedding_dim=12,
        num_layers=1,
        num_heads=2,
        mlp_dim=20,
        tie_embeddings=False,
    )
    head = summarise(GPT2, config).modules[-1]
    assert (head.name, head.parameters) == ("unembedding", 97 * 12)
