"""GPT-2: put together from what you wrote, it loads trained weights and writes.

All parts are there. What is left is the order that data flows in:

1. each token's embedding, from `token_embedding`, plus each position's, from `position_embedding`;
2. every block, one after the other, each with the causal mask;
3. the final norm, then `unembedding`, which others call `lm_head`: how well the stream matches each token's embedding.

Weights are loaded by name, so the parts have to be called as in the reference. `__init__` is yours this time, from the
configuration:

| attribute | what it is |
|---|---|
| `config` | the configuration itself |
| `token_embedding` | `nn.Embedding`: `vocab_size` vectors of width `embedding_dim` |
| `position_embedding` | `nn.Embedding`: `context_length` vectors of that width |
| `blocks` | `nn.ModuleList` of `num_layers` blocks |
| `final_norm` | `nn.LayerNorm`, with `eps=config.norm_eps` |
| `unembedding` | `nn.Linear` from `embedding_dim` to `vocab_size`, without bias |

The matrix that unembeds is the one that embeds: one tensor, not a copy. Learning what a token means and learning when
to predict it are then the same.

    >>> import torch
    >>> from allformers.models.gpt2.gpt2 import GPT2Config
    >>> GPT2(GPT2Config.tiny())(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])

Five bytes, and for each of them a score for every byte that may come next. Blocks expect a mask with the axes `batch`,
1, `seq`, `seq_k`; yours has two of them. Parts that you have not written yet are taken from the package.
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.models.gpt2 import gpt2
from allformers.models.gpt2.gpt2 import GPT2Config
from allformers.models.registry import load
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs
from allformers.practice.exercises.block import Block
from allformers.practice.exercises.causal_mask import causal_mask


class GPT2(nn.Module):
    """Token ids in; out, for each position, the logits of the token that comes next."""

    @checked
    def __init__(self, config: GPT2Config) -> None:
        """Make the parts. Their weights may be anything; trained ones are loaded later."""
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.position_embedding = nn.Embedding(config.context_length, config.embedding_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.unembedding = nn.Linear(config.embedding_dim, config.vocab_size, bias=False)
        self.unembedding.weight = self.token_embedding.weight

    @checked
    def forward(self, token_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the next token at every position.

        Args:
            token_ids: at most `context_length` tokens a row.
        """
        seq = token_ids.shape[1]
        mask = rearrange(causal_mask(seq), "seq seq_k -> 1 1 seq seq_k")
        x: Float[Tensor, "batch seq embed"] = self.token_embedding(token_ids) + self.position_embedding.weight[:seq]
        for block in self.blocks:
            x = block(x, mask)
        logits: Float[Tensor, "batch seq vocab"] = self.unembedding(self.final_norm(x))
        return logits


def cases() -> Iterator[Case]:
    """Two layers and three, several sequences and one, a single token and a whole context."""
    two = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=2, num_heads=3, mlp_dim=20)
    three = GPT2Config(vocab_size=7, context_length=5, embedding_dim=8, num_layers=3, num_heads=2, mlp_dim=10)
    yield Case(torch.randint(11, (2, 6)), made_with=(two,))
    yield Case(torch.randint(11, (3, 1)), made_with=(two,))
    yield Case(torch.randint(7, (1, 5)), made_with=(three,))


def a_later_token_never_changes_an_earlier_prediction(model_class: Callable[[GPT2Config], nn.Module]) -> None:
    """What is predicted at a position has not seen what comes after it: in writing, that is not there yet."""
    config = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=2, num_heads=3, mlp_dim=20)
    model, token_ids = model_class(config).eval(), torch.randint(11, (1, 7))
    other = token_ids.clone()
    other[0, 4] = (other[0, 4] + 1) % 11
    most, place = largest((model(other) - model(token_ids)).abs()[:, :4], "batch seq vocab")
    if most > 1e-5:
        raise Fault(f"another token at seq 4 changed the logits at {place} by {most:.4g}")


def the_order_of_tokens_matters(model_class: Callable[[GPT2Config], nn.Module]) -> None:
    """One block alone knows of order only what the vectors of positions tell it: to attention a text is a bag."""
    config = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=1, num_heads=3, mlp_dim=20)
    model = model_class(config).eval()
    one, other = model(torch.tensor([[1, 2, 3, 4]]))[:, -1], model(torch.tensor([[3, 1, 2, 4]]))[:, -1]
    if largest((one - other).abs(), "batch vocab")[0] < 1e-5:
        raise Fault("in a model of one block, the logits after the tokens 1 2 3 4 and after 3 1 2 4 are the same")


def one_tensor_embeds_and_unembeds(model_class: Callable[[GPT2Config], nn.Module]) -> None:
    """`unembedding.weight` is `token_embedding.weight`: what changes one in training changes the other."""
    model = model_class(GPT2Config.tiny())
    if model.get_parameter("unembedding.weight") is not model.get_parameter("token_embedding.weight"):
        raise Fault("`unembedding.weight` and `token_embedding.weight` are two tensors")


def it_writes_with_trained_weights(model_class: Callable[[GPT2Config], nn.Module]) -> str:
    """With the bundled model's weights it finds the same token likeliest each time, and so writes the same text."""
    trained = load("bundled").eval()
    model = model_class(trained.config).eval()
    model.load_state_dict(trained.state_dict())
    prompt = torch.tensor([list(b"The for statement")])
    expected = bytes(trained.generate(prompt, max_new_tokens=50, temperature=0)[0].tolist()).decode(errors="replace")
    written = prompt
    with torch.inference_mode():
        for _ in range(50):
            likeliest = model(written)[:, -1].argmax(dim=-1)
            written = torch.cat([written, rearrange(likeliest, "batch -> batch 1")], dim=1)
    text = bytes(written[0].tolist()).decode(errors="replace")
    if text != expected:
        raise Fault(f"it wrote {text!r}, expected {expected!r}")
    return f"it wrote: {text!r}"


exercise = Exercise(
    __name__,
    solution=(GPT2,),
    cases=cases,
    reference=gpt2.GPT2,
    properties=(
        a_later_token_never_changes_an_earlier_prediction,
        the_order_of_tokens_matters,
        one_tensor_embeds_and_unembeds,
        it_writes_with_trained_weights,
    ),
    hints=paragraphs(
        """
        `__init__` begins with `super().__init__()`; after it there is one line for each row of the table, and one that
        ties: `self.unembedding.weight = self.token_embedding.weight`. The blocks: `nn.ModuleList(Block(config) for _ in
        range(config.num_layers))`.

        In `forward`, the vectors of the positions are the first rows of a matrix:
        `self.position_embedding.weight[:seq]`. It has no axis `batch`; adding it to the tokens' vectors gives every
        sequence the same. The mask becomes what blocks expect by `rearrange(causal_mask(seq), "seq seq_k -> 1 1 seq
        seq_k")`.

        `x` is the sum of both vectors. Then `for block in self.blocks: x = block(x, mask)`, and at the end `return
        self.unembedding(self.final_norm(x))`.
        """
    ),
    page="gpt2.html#GPT2",
    part_of="allformers.models.gpt2.gpt2.GPT2",
    prerequisites=("causal-mask", "block"),
)
