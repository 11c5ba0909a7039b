"""RoPE: rotation keeps lengths, scores depend on distances only, and the frequencies are the reference's."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from einops import einsum

from allformers.models.llama.llama import LlamaConfig
from allformers.nn.rope import apply_rope, default_inv_freq, rope_cos_sin, yarn_mscale
from allformers.nn.shapes import ShapeError


def cos_sin(positions: list[int], head_dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return rope_cos_sin(torch.tensor(positions), default_inv_freq(head_dim, 10000.0, dtype=torch.float64))


def test_rotation_keeps_lengths_and_does_nothing_at_position_0() -> None:
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    moved = apply_rope(x, *cos_sin([0, 1, 7, 100, 5000]))
    torch.testing.assert_close(moved.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(moved[..., 0, :], x[..., 0, :])
    assert not torch.allclose(moved[..., 1:, :], x[..., 1:, :])


def test_a_score_depends_on_the_distance_and_on_nothing_else() -> None:
    query, key = torch.randn(1, 16, dtype=torch.float64), torch.randn(1, 16, dtype=torch.float64)

    def score(at: int, of: int) -> float:
        pair = apply_rope(query, *cos_sin([at])), apply_rope(key, *cos_sin([of]))
        return float(einsum(*pair, "seq head_dim, seq head_dim ->"))

    assert score(7, 3) == pytest.approx(score(1007, 1003), abs=1e-9)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)
    assert score(3, 7) != pytest.approx(score(7, 3), abs=1e-3)  # before is not behind


def test_a_pair_is_rotated_by_its_angle() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0]])  # one head of two pairs, the first of length 1
    quarter = torch.tensor([[torch.pi / 2, 0.3]])
    rotated = apply_rope(x, quarter.cos(), quarter.sin())
    torch.testing.assert_close(rotated, torch.tensor([[0.0, 0.0, 1.0, 0.0]]), atol=1e-6, rtol=0)


def test_it_is_what_the_reference_computes() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    queries, keys = torch.randn(2, 3, 5, 16), torch.randn(2, 3, 5, 16)
    cos, sin = rope_cos_sin(torch.tensor([0, 1, 2, 3, 9]), default_inv_freq(16, 10000.0))
    theirs = apply_rotary_pos_emb(queries, keys, *(torch.cat([half, half], dim=-1)[None] for half in (cos, sin)))
    for ours, reference in zip((apply_rope(x, cos, sin) for x in (queries, keys)), theirs, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-6)


SETTINGS = {
    "linear": {"rope_factor": 8.0},
    "dynamic": {"rope_factor": 8.0},
    "llama3": {"rope_factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    "longrope": {"rope_factor": 8.0, "short_factor": (1.0, 2.0) * 16, "long_factor": (1.0, 5.0) * 16},
}
"""Settings of each type of RoPE, for heads of 64."""


@pytest.mark.parametrize("rope_type", SETTINGS)
@pytest.mark.parametrize("context", [64, 4096])
@pytest.mark.parametrize("length", [50, 5000])
def test_frequencies_and_scaling_of_each_type_are_the_references(rope_type: str, context: int, length: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {"rope_type": rope_type, "rope_theta": 10000.0, **SETTINGS[rope_type]}
    parameters: dict[str, Any] = {"factor": settings["rope_factor"], "original_max_position_embeddings": context}
    config = SimpleNamespace(
        rope_parameters=parameters | {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()},
        head_dim=64,
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=8 * context,
        standardize_rope_params=lambda: None,
    )
    theirs, scaling = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=length)
    fields = settings | {"context_length": 8 * context, "original_context_length": context, "head_dim": 64}
    ours = LlamaConfig.tiny(**fields)
    torch.testing.assert_close(ours.inv_freq(torch.arange(length), torch.float32), theirs, atol=1e-7, rtol=1e-5)
    assert ours.attention_scaling == pytest.approx(scaling, rel=1e-12)


def test_the_factor_on_queries_and_keys_can_be_stated_or_follow_from_two_weights() -> None:
    yarn = {"rope_type": "yarn", "rope_factor": 4.0}
    assert LlamaConfig.tiny(**yarn).attention_scaling == yarn_mscale(4.0) == 0.1 * math.log(4) + 1
    assert LlamaConfig.tiny(**yarn, mscale=2.0).attention_scaling == yarn_mscale(4.0)
    both = LlamaConfig.tiny(**yarn, mscale=2.0, mscale_all_dim=0.5)
    assert both.attention_scaling == (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1)
    assert LlamaConfig.tiny(**yarn, attention_factor=1.5, mscale=2.0, mscale_all_dim=0.5).attention_scaling == 1.5
    assert LlamaConfig.tiny(attention_factor=1.5).attention_scaling == 1  # no type that scales


def test_settings_with_which_a_formula_has_no_value_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"rope_theta.*yarn.*0.5"):
        LlamaConfig.tiny(rope_type="yarn", rope_theta=0.5)
    with pytest.raises(ValueError, match=r"dynamic.*2"):
        LlamaConfig.tiny(rope_type="dynamic", head_dim=2)
    with pytest.raises(ValueError, match=r"short_factor has 3.*8"):
        LlamaConfig.tiny(rope_type="longrope", short_factor=(1.0,) * 3, long_factor=(1.0,) * 8)
    with pytest.raises(ValueError, match=r"long_factor has 0.*8"):
        LlamaConfig.tiny(rope_type="longrope", short_factor=(1.0,) * 8)
    with pytest.raises(ValueError, match=r"original_context_length.*longrope.*1"):
        LlamaConfig.tiny(rope_type="longrope", original_context_length=1)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ShapeError, match="`seq`"):
        apply_rope(torch.randn(1, 5, 16), *cos_sin([0, 1]))
