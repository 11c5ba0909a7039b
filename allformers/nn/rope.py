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
from collections.abc import Sequence
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
    Source: Meta's code of Llama 3.1; the idea is YaRN's.
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
    truncate: bool = True,
) -> Float[Tensor, "pair"]:
    """YaRN's frequencies for a longer context: as Llama 3's, but interpolated along the number of the pair.

    Pairs that make more than `beta_fast` full turns within the original context stay as they are, those that make
    fewer than `beta_slow` are slowed down by `factor`. With `truncate`, interpolation begins and ends at whole pairs.
    Source: Peng et al. 2023, "YaRN", arXiv:2309.00071, section 3.2.
    """
    pairs = len(inv_freq)

    def pair_with_turns(turns: float) -> float:
        return pairs * math.log(original_context_length / (turns * 2 * math.pi)) / math.log(theta)

    first, last = pair_with_turns(beta_fast), pair_with_turns(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    number = torch.arange(pairs, device=inv_freq.device).to(inv_freq.dtype)
    slowed = ((number - first) / (last - first or 0.001)).clamp(0, 1)
    return (1 - slowed) * inv_freq + slowed * inv_freq / factor


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention temperature t as a factor of queries and keys, sqrt(1 / t). Source: section 3.4.

    `mscale` is a weight on the logarithm, which DeepSeek added: 1 in the paper.
    """
    return 0.1 * mscale * math.log(max(factor, 1.0)) + 1.0


@checked
def dynamic_inv_freq(
    head_dim: int, theta: float, factor: float, context_length: int, length: Int[Tensor, ""], dtype: torch.dtype
) -> Float[Tensor, "pair"]:
    """Dynamic NTK's frequencies: beyond the context, the base theta grows with the length of the text.

    A larger base slows down the slow pairs most and the fastest not at all. The exponent is chosen so that the slowest
    pair, at a length of n contexts, rotates `factor` * n - (`factor` - 1) times slower.
    Source: arXiv:2309.00071, sections 3.1 and 3.3, after bloc97 and emozilla, who published it on Reddit in 2023.
    """
    stretch = (factor * length.to(dtype) / context_length - (factor - 1)).clamp(min=1)
    exponents = torch.arange(0, head_dim, 2, device=length.device).to(dtype) / head_dim
    return 1.0 / (theta * stretch ** (head_dim / (head_dim - 2))) ** exponents


@checked
def longrope_inv_freq(
    inv_freq: Float[Tensor, "pair"],
    short_factor: Sequence[float],
    long_factor: Sequence[float],
    original_context_length: int,
    length: Int[Tensor, ""],
) -> Float[Tensor, "pair"]:
    """LongRoPE's frequencies: each pair is slowed down by a factor of its own, which a search has found.

    There are two sets of factors: for texts within the original context, and for longer ones.
    Source: Ding et al. 2024, "LongRoPE", arXiv:2402.13753, section 3.
    """
    short = inv_freq / torch.tensor(short_factor, dtype=inv_freq.dtype, device=inv_freq.device)
    long = inv_freq / torch.tensor(long_factor, dtype=inv_freq.dtype, device=inv_freq.device)
    return torch.where(length > original_context_length, long, short)


def longrope_mscale(factor: float, original_context_length: int) -> float:
    """LongRoPE's factor of queries and keys; as YaRN's, it grows with the extension. Source: the code of Phi-3."""
    return math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(original_context_length))


RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, kw_only=True)
class RopeConfig(Config):
    """RoPE's settings in a configuration: `rope_parameters` or `rope_scaling` in `config.json`."""

    context_length: PositiveInt  # max_position_embeddings; every model has its own
    rope_theta: PositiveFloat = 10000.0
    rope_type: RopeType = "default"
    rope_factor: PositiveFloat = 1.0  # factor: how much longer the context became
    original_context_length: PositiveInt = 8192  # original_max_position_embeddings, for llama3, yarn and longrope
    low_freq_factor: PositiveFloat = 1.0  # for llama3
    high_freq_factor: PositiveFloat = 4.0
    beta_fast: PositiveFloat = 32.0  # for yarn
    beta_slow: PositiveFloat = 1.0
    truncate: bool = True
    mscale: PositiveFloat | None = None  # for yarn, and without effect unless both are stated
    mscale_all_dim: PositiveFloat | None = None
    attention_factor: PositiveFloat | None = None  # for yarn and longrope; None: computed, see attention_scaling
    short_factor: tuple[PositiveFloat, ...] | None = None  # for longrope: of each pair, within the original context
    long_factor: tuple[PositiveFloat, ...] | None = None  # likewise beyond it

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_greater("high_freq_factor", "low_freq_factor")
        self.require_greater("beta_fast", "beta_slow")
        if self.rope_type == "yarn" and not self.rope_theta > 1:
            raise ValueError(f"rope_theta must be above 1 where rope_type is yarn, not {self.rope_theta}")
        if self.rope_type == "dynamic" and not self.rope_dim > 2:
            raise ValueError(f"rope_type dynamic needs more than one pair, but heads rotate {self.rope_dim} numbers")
        if self.rope_type == "longrope":
            if self.original_context_length == 1:
                raise ValueError("original_context_length must be above 1 where rope_type is longrope, not 1")
            for name in ("short_factor", "long_factor"):
                given = len(getattr(self, name) or ())
                if given != self.rope_dim // 2:
                    raise ValueError(f"{name} has {given} entries; heads of {self.rope_dim} need {self.rope_dim // 2}")

    @property
    def rope_dim(self) -> int:
        """The numbers of a head that RoPE rotates; every model says its own."""
        raise NotImplementedError

    @checked
    def inv_freq(self, positions: Int[Tensor, "seq"], dtype: torch.dtype) -> Float[Tensor, "pair"]:
        """The angle by which each pair rotates per position, in a text that ends with the last of these positions.

        With "dynamic" and "longrope" it depends on the length of the text. Keys in a cache stay as they were rotated
        when the text was shorter, here as in the reference.
        """
        inv_freq = default_inv_freq(self.rope_dim, self.rope_theta, positions.device, dtype)
        match self.rope_type:
            case "default":
                return inv_freq
            case "linear":
                return inv_freq / self.rope_factor
            case "dynamic":
                return dynamic_inv_freq(
                    self.rope_dim,
                    theta=self.rope_theta,
                    factor=self.rope_factor,
                    context_length=self.context_length,
                    length=positions[-1] + 1,
                    dtype=dtype,
                )
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
                    truncate=self.truncate,
                )
            case "longrope":
                return longrope_inv_freq(
                    inv_freq,
                    short_factor=self.short_factor or (),
                    long_factor=self.long_factor or (),
                    original_context_length=self.original_context_length,
                    length=positions[-1] + 1,
                )

    @property
    def attention_scaling(self) -> float:
        """The factor on cosine and sine, and so on rotated queries and keys: `attention_factor`, or what the type has.

        YaRN's is its mscale; where two weights of it are stated, the quotient of both.
        """
        if self.rope_type not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.rope_type == "longrope":
            return longrope_mscale(self.rope_factor, self.original_context_length)
        if self.mscale is None or self.mscale_all_dim is None:
            return yarn_mscale(self.rope_factor)
        return yarn_mscale(self.rope_factor, self.mscale) / yarn_mscale(self.rope_factor, self.mscale_all_dim)


@checked
def rope_cos_sin(
    positions: Int[Tensor, "seq"], inv_freq: Float[Tensor, "pair"], attention_scaling: float = 1.0
) -> tuple[Float[Tensor, "seq pair"], Float[Tensor, "seq pair"]]:
    """RoPE's cosine and sine: those of the angle by which each pair is rotated at each position.

    Scaled by `attention_scaling`, with which queries and keys become longer as they are rotated.
    """
    angles = einsum(positions.to(inv_freq.dtype), inv_freq, "seq, pair -> seq pair")
    return angles.cos() * attention_scaling, angles.sin() * attention_scaling


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
