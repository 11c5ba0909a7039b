"""RoPE: rotation keeps lengths, scores depend on distances only, and the frequencies are the reference's."""

from types import SimpleNamespace

import pytest
import torch
from einops import einsum

from allformers.nn.rope import apply_rope, default_inv_freq, llama3_inv_freq, rope_cos_sin, yarn_inv_freq
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


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
@pytest.mark.parametrize("factor", [2.0, 8.0, 40.0])
@pytest.mark.parametrize("context", [64, 4096])
def test_scaled_frequencies_are_the_references(kind: str, factor: float, context: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {"rope_type": kind, "rope_theta": 10000.0, "factor": factor, "original_max_position_embeddings": context}
    settings |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0}
    config = SimpleNamespace(
        rope_parameters=settings,
        head_dim=64,
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=8 * context,
        standardize_rope_params=lambda: None,
    )
    theirs, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    plain = default_inv_freq(64, 10000.0)
    if kind == "llama3":
        ours = llama3_inv_freq(plain, factor, 1.0, 4.0, context)
    else:
        ours = yarn_inv_freq(plain, 10000.0, factor, 32.0, 1.0, context)
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ShapeError, match="`seq`"):
        apply_rope(torch.randn(1, 5, 16), *cos_sin([0, 1]))
