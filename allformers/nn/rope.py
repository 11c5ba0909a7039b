"""Rotary positions: say where a token stands by turning its queries and keys.

Take the numbers of a head in pairs, and see each pair as a point in the plane. Turn the point by an angle that grows
with the position, each pair at a speed of its own. A query and a key that are turned in this way have a dot product
that depends on how far apart they stand, and on nothing else: turning both by the same angle changes nothing. So
positions need no vectors of their own, and there is no position that has never been seen; only distances can be new.

    positions   seq
        |  frequencies: how fast each pair turns
    angles      seq pair
        |  turns: their cosines and sines, once for all layers
    turned      part seq component pair
        |  rotate: queries and keys, pair by pair
    queries     batch ... seq head_dim

Source: Su et al. 2021, "RoFormer", arXiv:2104.09864.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from allformers.nn.config import Configuration, Count, Positive
from allformers.nn.shapes import checked


@checked
def frequencies(
    head_dim: int, theta: float, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "pair"]:
    """How far each pair turns from one position to the next, in radians: from 1 down to nearly 1 / theta.

    Fast pairs tell neighbours apart, slow ones tell far from near.
    """
    exponents = torch.arange(0, head_dim, 2, device=device).to(dtype) / head_dim
    return 1.0 / theta**exponents


@checked
def scale_like_llama3(
    speeds: Float[Tensor, "pair"],
    factor: float,
    low_frequency_factor: float,
    high_frequency_factor: float,
    context: int,
) -> Float[Tensor, "pair"]:
    """Slow down the pairs that never came full circle in training, so that a longer text stays within known angles.

    A pair that turns at least `high_frequency_factor` times in the `context` that it was trained on is left alone; one
    that turns less than `low_frequency_factor` times is slowed down by `factor`; between them it goes over smoothly.
    Source: Meta's code of Llama 3.1; the idea is from Peng et al. 2023, "YaRN", arXiv:2309.00071.
    """
    turns = context * speeds / (2 * math.pi)
    kept = ((turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor)).clamp(0, 1)
    return kept * speeds + (1 - kept) * speeds / factor


@checked
def scale_like_yarn(
    speeds: Float[Tensor, "pair"], theta: float, factor: float, fast: float, slow: float, context: int
) -> Float[Tensor, "pair"]:
    """The same idea with the border drawn by the number of the pair, in whole numbers.

    Pairs that turn more than `fast` times in the `context` are left alone, those that turn less than `slow` times are
    slowed down by `factor`, and between them it goes over in a straight line. Source: arXiv:2309.00071.
    """
    pairs = len(speeds)

    def pair_that_turns(times: float) -> float:
        return pairs * math.log(context / (times * 2 * math.pi)) / math.log(theta)

    first, last = max(math.floor(pair_that_turns(fast)), 0), min(math.ceil(pair_that_turns(slow)), 2 * pairs - 1)
    number = torch.arange(pairs, device=speeds.device).to(speeds.dtype)
    slowed = ((number - first) / (last - first if last > first else 0.001)).clamp(0, 1)
    return (1 - slowed) * speeds + slowed * speeds / factor


def sharpen_like_yarn(factor: float, strength: float = 1.0) -> float:
    """What to multiply scores by where rotations are slowed down, which blurs them. Source: arXiv:2309.00071, 3.4."""
    return (0.1 * strength * math.log(max(factor, 1.0)) + 1.0) ** 2


@dataclass(frozen=True, kw_only=True)
class Rotations(Configuration):
    """How fast pairs turn, and how that was changed for longer texts: a part of a model's configuration.

    Attributes:
        rope_theta: the base of the frequencies.
        rope_type: "default", "linear" (all rotations slower by `rope_factor`), "llama3" or "yarn" (some of them).
        rope_factor: how much slower.
        rope_context: for "llama3" and "yarn": the context before it was extended.
        rope_low_frequency_factor: for "llama3", see `scale_like_llama3`.
        rope_high_frequency_factor: likewise.
        rope_fast: for "yarn", see `scale_like_yarn`.
        rope_slow: likewise.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    rope_theta: Positive = 10000.0
    rope_type: Literal["default", "linear", "llama3", "yarn"] = "default"
    rope_factor: Positive = 1.0
    rope_context: Count = 8192
    rope_low_frequency_factor: Positive = 1.0
    rope_high_frequency_factor: Positive = 4.0
    rope_fast: Positive = 32.0
    rope_slow: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.exceeds("rope_high_frequency_factor", "rope_low_frequency_factor")
        self.exceeds("rope_fast", "rope_slow")

    @checked
    def speeds(self, pairs: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "pair"]:
        """How far each of so many pairs turns from one position to the next."""
        plain = frequencies(2 * pairs, self.rope_theta, device, dtype)
        match self.rope_type:
            case "linear":
                return plain / self.rope_factor
            case "llama3":
                low, high = self.rope_low_frequency_factor, self.rope_high_frequency_factor
                return scale_like_llama3(plain, self.rope_factor, low, high, self.rope_context)
            case "yarn":
                fast, slow, theta = self.rope_fast, self.rope_slow, self.rope_theta
                return scale_like_yarn(plain, theta, self.rope_factor, fast, slow, self.rope_context)
        return plain

    @property
    def sharpening(self) -> float:
        """What scores are multiplied by."""
        return sharpen_like_yarn(self.rope_factor) if self.rope_type == "yarn" else 1.0


@checked
def angles(positions: Int[Tensor, "seq"], speeds: Float[Tensor, "pair"]) -> Float[Tensor, "seq pair"]:
    """By how much each pair is turned at each position, in radians."""
    return einsum(positions.to(speeds.dtype), speeds, "seq, pair -> seq pair")


@checked
def turns(turned: Float[Tensor, "seq pair"]) -> Float[Tensor, "part seq component pair"]:
    """What turning by these angles takes: of each number itself, and of the other one of its pair.

    The point (a, b) becomes (a cos - b sin, b cos + a sin). So both components keep their cosine's part of themselves,
    and get minus the sine's part of the other, or plus.
    """
    cosine, sine = turned.cos(), turned.sin()
    parts = [cosine, cosine, -sine, sine]
    return rearrange(parts, "(part component) seq pair -> part seq component pair", component=2)


@checked
def rotate(
    x: Float[Tensor, "... seq head_dim"], turned: Float[Tensor, "part seq component pair"]
) -> Float[Tensor, "... seq head_dim"]:
    """Turn each pair by its angle: `turned` is what `turns` makes of the angles.

    A pair is number i of the first half and number i of the second, as checkpoints on the Hugging Face hub have it;
    other code takes neighbours. Which it is makes no difference, as long as weights and code agree.
    """
    itself, other = turned.to(x.dtype)
    pairs = rearrange(x, "... seq (component pair) -> ... seq component pair", component=2)
    both = pairs * itself + pairs.flip(-2) * other
    return rearrange(both, "... seq component pair -> ... seq (component pair)")
