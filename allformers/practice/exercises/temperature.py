"""Temperature: how daring a writer is, and drawing a token by its odds.

The likeliest token, each time, makes a dull text that soon runs in circles. So a token is drawn: softmax makes
probabilities of the scores, and each token comes up as often as it is likely. How far the draw may stray is set by the
temperature T, by which all logits are divided first. That raises probabilities to the power 1/T:

| odds at T = 1 | at T = 0.5 | at T = 2 |
|---|---|---|
| 3 to 1 | 9 to 1 | 1.7 to 1 |
| 9 to 1 | 81 to 1 | 3 to 1 |

Below 1 the favourite gains, above 1 the others catch up. The order stays, and no token is ruled out.

    >>> import torch
    >>> logits = torch.tensor([[9.0, 1.0]]).log()
    >>> torch.softmax(apply_temperature(logits, 2.0), dim=-1)
    tensor([[0.7500, 0.2500]])

`sample` draws one token for each row, by the odds that `apply_temperature` leaves. The lower the temperature, the more
of the probability goes to the likeliest token, and at 0 it would have all. By 0 nothing can be divided, so there the
likeliest token is taken, and nothing is drawn:

    >>> sample(torch.tensor([[0.1, 0.3, 0.2], [5.0, 4.0, 3.0]]), 0.0)
    tensor([1, 0])

You may assume a temperature of at least 0. `F.softmax` is yours to use, and so is `torch.multinomial(probabilities,
1)`, which draws: its result has the axes `batch` and 1.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from allformers.generation import sampling
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, paragraphs


@checked
def apply_temperature(logits: Float[Tensor, "batch vocab"], temperature: float) -> Float[Tensor, "batch vocab"]:
    """Sharpen (below 1) or flatten (above 1) the distribution; the temperature is above 0."""
    return logits / temperature


@checked
def sample(logits: Float[Tensor, "batch vocab"], temperature: float) -> Int[Tensor, "batch"]:
    """Draw one token for each row; at temperature 0 take the likeliest."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = F.softmax(apply_temperature(logits, temperature), dim=-1)
    return rearrange(torch.multinomial(probabilities, 1), "batch 1 -> batch")


def cases() -> Iterator[Case]:
    """One row and several, each with a token that is as good as certain, so that whoever draws gets the same."""
    for batch, vocab, temperature in ((4, 7, 1.0), (1, 11, 0.5), (5, 3, 0.0), (2, 29, 1.5)):
        certain = torch.randint(vocab, (batch, 1))
        yield Case(torch.randn(batch, vocab).scatter(-1, certain, 100.0), temperature)


Function = Callable[..., Tensor]


def odds_of_9_to_1_become_3_to_1_at_temperature_2(apply_temperature: Function, sample: Function) -> None:
    """Odds are raised to the power 1/T: at 2 the square root is taken of them, at 0.5 they are squared."""
    logits = torch.tensor([[9.0, 1.0]]).log()
    for temperature, wanted in ((2.0, 3.0), (0.5, 81.0), (1.0, 9.0)):
        likely, unlikely = F.softmax(apply_temperature(logits, temperature), dim=-1)[0].tolist()
        if abs(likely / unlikely - wanted) > 0.01 * wanted:
            told = f"at temperature {temperature}, odds of 9 to 1 became {likely / unlikely:.3g} to 1"
            raise Fault(told, f"Odds are raised to the power 1/T, so they become {wanted:.0f} to 1.")


def a_token_is_drawn_as_often_as_it_is_likely(apply_temperature: Function, sample: Function) -> str:
    """Each row draws for itself, by its own odds: many rows with odds of 3 to 1 draw one token thrice as often."""
    rows = 20_000
    for odds, temperature, wanted in ((3.0, 1.0, 0.75), (9.0, 2.0, 0.75), (3.0, 0.5, 0.9)):
        logits = repeat(torch.tensor([odds, 1.0]).log(), "vocab -> batch vocab", batch=rows)
        drawn = int((sample(logits, temperature) == 0).sum())
        if abs(drawn / rows - wanted) > 0.02:
            raise Fault(
                f"of {rows:,} rows with odds of {odds:.0f} to 1, {drawn:,} drew the likelier token at temperature "
                f"{temperature}",
                f"About {round(wanted * rows):,} do: each row draws for itself, by the odds that temperature leaves.",
            )
    return f"of {rows:,} rows with odds of 3 to 1, {drawn:,} drew the likelier token at temperature 0.5"


def temperature_0_takes_the_likeliest(apply_temperature: Function, sample: Function) -> None:
    """The limit of ever lower temperatures, where nothing is left to chance, however close the others are."""
    logits = repeat(torch.tensor([1.0, 1.001, 0.999, 1.0]), "vocab -> batch vocab", batch=200)
    others = sum(token != 1 for token in sample(logits, 0.0).tolist())
    if others:
        raise Fault(f"at temperature 0, {others} of 200 rows took another token than the likeliest")


exercise = Exercise(
    __name__,
    solution=(apply_temperature, sample),
    cases=cases,
    reference=sampling.sample,
    properties=(
        odds_of_9_to_1_become_3_to_1_at_temperature_2,
        a_token_is_drawn_as_often_as_it_is_likely,
        temperature_0_takes_the_likeliest,
    ),
    hints=paragraphs(
        """
        The first function is one division. The second has two ways: one for a temperature of 0, which draws nothing,
        and one that goes from logits over probabilities to a token.

        What is divided are the logits, before softmax: probabilities that are divided are no probabilities any more.
        Temperature 0 has to be asked for before anything is divided: `if temperature == 0:`.

        At 0, `return logits.argmax(dim=-1)`. Otherwise `probabilities = F.softmax(apply_temperature(logits,
        temperature), dim=-1)`, and `rearrange(torch.multinomial(probabilities, 1), "batch 1 -> batch")`.
        """
    ),
    page="writing.html#apply_temperature",
    part_of="allformers.generation.sampling.apply_temperature",
    prerequisites=("greedy",),
)
