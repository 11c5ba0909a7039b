"""RoPE, rotary position embedding: a position is a rotation of queries and keys.

The numbers of a head are taken in pairs, and each pair is a point in the plane. RoPE rotates the point by an angle
proportional to the position, each pair at a frequency of its own. The dot product of a rotated query and a rotated key
depends on their distance alone, so positions need no embeddings.

    positions   seq
        |  times inv_freq (pair): how far each pair rotates from one position to the next
    angles      seq pair
        |  cosine and sine, once for all layers
    cos, sin    seq pair
        |  apply_rope: queries and keys, pair by pair
    queries     ... seq head_dim

Source: Su et al. 2021, "RoFormer", arXiv:2104.09864.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from allformers.nn.config import Config, PositiveFloat, PositiveInt
from allformers.nn.shapes import checked


@checked
def default_inv_freq(
    head_dim: int, theta: float, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "pair"]:
    """RoPE's inverse frequencies: the radians by which each pair rotates per position, from 1 down to nearly 1 / theta.

    Fast pairs tell neighbours apart, slow ones tell far from near.
    """
    exponents = torch.arange(0, head_dim, 2, device=device).to(dtype) / head_dim
    return 1.0 / theta**exponents


@checked
def llama3_inv_freq(
    inv_freq: Float[Tensor, "pair"],
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_context_length: int,
) -> Float[Tensor, "pair"]:
    """Llama 3.1's frequencies for a longer context than in training: slow pairs are slowed down by `factor`.

    A pair that makes at least `high_freq_factor` full turns within the original context stays as it is; one that makes
    fewer than `low_freq_factor` is slowed down; between them the two are interpolated.
    Source: Meta's code of Llama 3.1; the idea is from Peng et al. 2023, "YaRN", arXiv:2309.00071.
    """
    turns = original_context_length * inv_freq / (2 * math.pi)
    smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return smooth * inv_freq + (1 - smooth) * inv_freq / factor


@checked
def yarn_inv_freq(
    inv_freq: Float[Tensor, "pair"],
    theta: float,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    original_context_length: int,
) -> Float[Tensor, "pair"]:
    """YaRN's frequencies for a longer context: as Llama 3's, but interpolated along the number of the pair.

    Pairs that make more than `beta_fast` full turns within the original context stay as they are, those that make
    fewer than `beta_slow` are slowed down by `factor`. Source: arXiv:2309.00071, section 3.2.
    """
    pairs = len(inv_freq)

    def pair_with_turns(turns: float) -> float:
        return pairs * math.log(original_context_length / (turns * 2 * math.pi)) / math.log(theta)

    first = max(math.floor(pair_with_turns(beta_fast)), 0)
    last = min(math.ceil(pair_with_turns(beta_slow)), 2 * pairs - 1)
    number = torch.arange(pairs, device=inv_freq.device).to(inv_freq.dtype)
    slowed = ((number - first) / (last - first if last > first else 0.001)).clamp(0, 1)
    return (1 - slowed) * inv_freq + slowed * inv_freq / factor


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention temperature t as a factor of queries and keys, sqrt(1 / t). Source: section 3.4."""
    return 0.1 * mscale * math.log(max(factor, 1.0)) + 1.0


RopeType = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, kw_only=True)
class RopeConfig(Config):
    """RoPE's settings in a configuration: `rope_parameters` or `rope_scaling` in `config.json`."""

    rope_theta: PositiveFloat = 10000.0
    rope_type: RopeType = "default"
    rope_factor: PositiveFloat = 1.0  # factor: how much longer the context became
    original_context_length: PositiveInt = 8192  # original_max_position_embeddings, for llama3 and yarn
    low_freq_factor: PositiveFloat = 1.0  # for llama3
    high_freq_factor: PositiveFloat = 4.0
    beta_fast: PositiveFloat = 32.0  # for yarn
    beta_slow: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_greater("high_freq_factor", "low_freq_factor")
        self.require_greater("beta_fast", "beta_slow")

    @checked
    def inv_freq(self, rope_dim: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "pair"]:
        """The angle by which each of `rope_dim / 2` pairs rotates per position."""
        inv_freq = default_inv_freq(rope_dim, self.rope_theta, device, dtype)
        match self.rope_type:
            case "default":
                return inv_freq
            case "linear":
                return inv_freq / self.rope_factor
            case "llama3":
                return llama3_inv_freq(
                    inv_freq,
                    factor=self.rope_factor,
                    low_freq_factor=self.low_freq_factor,
                    high_freq_factor=self.high_freq_factor,
                    original_context_length=self.original_context_length,
                )
            case "yarn":
                return yarn_inv_freq(
                    inv_freq,
                    theta=self.rope_theta,
                    factor=self.rope_factor,
                    beta_fast=self.beta_fast,
                    beta_slow=self.beta_slow,
                    original_context_length=self.original_context_length,
                )

    @property
    def score_factor(self) -> float:
        """The factor of the scores: YaRN's mscale squared, once for the query and once for the key."""
        return yarn_mscale(self.rope_factor) ** 2 if self.rope_type == "yarn" else 1.0


@checked
def rope_cos_sin(
    positions: Int[Tensor, "seq"], inv_freq: Float[Tensor, "pair"]
) -> tuple[Float[Tensor, "seq pair"], Float[Tensor, "seq pair"]]:
    """RoPE's cosine and sine: those of the angle by which each pair is rotated at each position."""
    angles = einsum(positions.to(inv_freq.dtype), inv_freq, "seq, pair -> seq pair")
    return angles.cos(), angles.sin()


@checked
def apply_rope(
    x: Float[Tensor, "... seq head_dim"], cos: Float[Tensor, "seq pair"], sin: Float[Tensor, "seq pair"]
) -> Float[Tensor, "... seq head_dim"]:
    """Apply RoPE: rotate each pair (a, b) to (a cos - b sin, b cos + a sin). A pair is (x[i], x[i + head_dim / 2]).

    Checkpoints on the Hugging Face hub pair the halves of a head; other code pairs neighbours. Either is right, as long
    as weights and code agree.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = rearrange(x, "... seq (component pair) -> component ... seq pair", component=2)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
