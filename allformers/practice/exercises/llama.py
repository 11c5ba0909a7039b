"""Llama: the same frame as GPT-2's, filled with the parts that you have just written.

The order that data flows in is GPT-2's: token embeddings, blocks that add to the residual stream, a last norm, logits.
What is new is in the parts: `RMSNorm`, `GroupedQueryAttention` with RoPE, `SwiGLU`. Those that you have not written yet
are taken from the package.

A **block** adds to the stream what attention makes of the normalised stream, and then what the MLP makes of that,
normalised again. Its parts are made for you. The **model** is yours, from the configuration:

| attribute | what it is |
|---|---|
| `config` | the configuration itself |
| `token_embedding` | `nn.Embedding`: `vocab_size` vectors of width `embedding_dim` |
| `blocks` | `nn.ModuleList` of `num_layers` blocks |
| `final_norm` | `RMSNorm` of that width, with `config.norm_eps` |
| `unembedding` | `nn.Linear` from `embedding_dim` to `vocab_size`, without bias |

There is no embedding for a position. Where a token stands is said in every block anew, by the angles that queries and
keys are rotated by. They are the same in all blocks: `rope_cos_sin` of the positions 0, 1, 2 ... and of
`default_inv_freq(head_dim, theta)`, with the configuration's `rope_theta`. (Llama 3.1 slows some frequencies down for
longer texts; your model need not know that.)

The unembedding has weights of its own, unless `config.tie_embeddings` says that it shares those of the embedding; then
they are one tensor.

    >>> import torch
    >>> from allformers.models.llama.llama import LlamaConfig
    >>> model = Llama(LlamaConfig.tiny())
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    >>> sum(parameter.numel() for parameter in model.parameters())
    119104

Attention expects a mask with the axes `batch`, 1, `seq`, `seq_k`; that of `causal_mask` has two of them.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.models.llama import llama
from allformers.models.llama.llama import LlamaConfig
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs
from allformers.practice.exercises.causal_mask import causal_mask
from allformers.practice.exercises.grouped_query_attention import GroupedQueryAttention
from allformers.practice.exercises.rms_norm import RMSNorm
from allformers.practice.exercises.rotary import default_inv_freq, rope_cos_sin
from allformers.practice.exercises.swiglu import SwiGLU


class Block(nn.Module):
    """One layer: attention, then the MLP, each behind a norm, each only ever adding to the stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = RMSNorm(config.embedding_dim, config.norm_eps)
        self.attention = GroupedQueryAttention(config)
        self.mlp_norm = RMSNorm(config.embedding_dim, config.norm_eps)
        self.mlp = SwiGLU(config.embedding_dim, config.mlp_dim)

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        cos: Float[Tensor, "seq pair"],
        sin: Float[Tensor, "seq pair"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the residual stream what attention and then the MLP make of it.

        Args:
            x: the residual stream.
            cos: RoPE's cosine for each position and pair; attention takes it after `x`.
            sin: likewise the sine.
            mask: True where a query may attend to a key; attention takes it last.
        """
        x_mid: Float[Tensor, "batch seq embed"] = x + self.attention(self.attention_norm(x), cos, sin, mask)
        return x_mid + self.mlp(self.mlp_norm(x_mid))


class Llama(nn.Module):
    """Token ids in; out, for each position, the logits of the token that comes next."""

    @checked
    def __init__(self, config: LlamaConfig) -> None:
        """Make the parts. Their weights may be anything; others are loaded later."""
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = RMSNorm(config.embedding_dim, config.norm_eps)
        self.unembedding = nn.Linear(config.embedding_dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembedding.weight = self.token_embedding.weight

    @checked
    def forward(self, token_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the next token at every position."""
        seq = token_ids.shape[1]
        cos, sin = rope_cos_sin(torch.arange(seq), default_inv_freq(self.config.head_dim, self.config.rope_theta))
        mask = rearrange(causal_mask(seq), "seq seq_k -> 1 1 seq seq_k")
        x: Float[Tensor, "batch seq embed"] = self.token_embedding(token_ids)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        logits: Float[Tensor, "batch seq vocab"] = self.unembedding(self.final_norm(x))
        return logits


CONFIG = LlamaConfig(
    vocab_size=11,
    context_length=9,
    embedding_dim=10,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=20,
    rope_theta=100.0,
    rope_type="default",
    rope_factor=1.0,
)


def cases() -> Iterator[Case]:
    """Two layers and three, embeddings apart and tied, several sequences and one, a single token and many."""
    three = dataclasses.replace(CONFIG, vocab_size=7, num_layers=3, num_kv_heads=3, head_dim=2, tie_embeddings=True)
    yield Case(torch.randint(11, (2, 6)), made_with=(CONFIG,))
    yield Case(torch.randint(11, (3, 1)), made_with=(CONFIG,))
    yield Case(torch.randint(7, (1, 9)), made_with=(three,))


BlockClass = Callable[[LlamaConfig], nn.Module]
ModelClass = Callable[[LlamaConfig], nn.Module]


def a_later_token_never_changes_an_earlier_prediction(block_class: BlockClass, model_class: ModelClass) -> None:
    """What is predicted at a position has not seen what comes after it: in writing, that is not there yet."""
    model, token_ids = model_class(CONFIG), torch.randint(11, (1, 7))
    other = token_ids.clone()
    other[0, 4] = (other[0, 4] + 1) % 11
    most, place = largest((model(other) - model(token_ids)).abs()[:, :4], "batch seq vocab")
    if most > 1e-5:
        raise Fault(f"another token at seq 4 changed the logits at {place} by {most:.4g}")


def the_order_of_tokens_matters(block_class: BlockClass, model_class: ModelClass) -> None:
    """No embedding says where a token stands: without RoPE a text would be a bag of tokens to its last position."""
    model = model_class(dataclasses.replace(CONFIG, num_layers=1))
    one, other = model(torch.tensor([[1, 2, 3, 4]]))[:, -1], model(torch.tensor([[3, 1, 2, 4]]))[:, -1]
    if largest((one - other).abs(), "batch vocab")[0] < 1e-6:
        raise Fault("in a model of one block, the logits after the tokens 1 2 3 4 and after 3 1 2 4 are the same")


def a_text_may_be_longer_than_any_before(block_class: BlockClass, model_class: ModelClass) -> None:
    """Angles go on for as long as positions do; `context_length` is what a model was trained on, and no table's end."""
    try:
        model_class(CONFIG)(torch.randint(11, (1, 3 * CONFIG.context_length)))
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise Fault(f"27 tokens, with a `context_length` of 9: {type(error).__name__}: {error}") from None


def embeddings_are_tied_where_the_configuration_says_so(block_class: BlockClass, model_class: ModelClass) -> None:
    """One tensor for both in the models that save parameters, two in the others."""
    for tied in (False, True):
        model = model_class(dataclasses.replace(CONFIG, tie_embeddings=tied))
        same = model.get_parameter("unembedding.weight") is model.get_parameter("token_embedding.weight")
        if same != tied:
            told = "one tensor" if same else "two tensors"
            raise Fault(f"with `tie_embeddings` {tied}, `unembedding.weight` and `token_embedding.weight` are {told}")


def it_writes_what_the_reference_writes(block_class: BlockClass, model_class: ModelClass) -> str:
    """With the weights of the package's own Llama it finds the same token likeliest, each time."""
    torch.manual_seed(0)
    reference = llama.Llama(LlamaConfig.tiny()).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.2)
    model, prompt = model_class(reference.config).eval(), torch.tensor([[72, 101, 108, 108, 111]])
    model.load_state_dict(reference.state_dict())
    expected = reference.generate(prompt, max_new_tokens=20, temperature=0)[0, 5:].tolist()
    text = prompt
    with torch.inference_mode():
        for _ in range(20):
            likeliest = model(text)[:, -1].argmax(dim=-1)
            text = torch.cat([text, rearrange(likeliest, "batch -> batch 1")], dim=1)
    written = text[0, 5:].tolist()
    for place, (ours, theirs) in enumerate(zip(written, expected, strict=True), 1):
        if ours != theirs:
            raise Fault(f"token {place} that it wrote is {ours}, and the reference's is {theirs}")
    return f"with random weights, both wrote {' '.join(map(str, written[:8]))} ..."


exercise = Exercise(
    __name__,
    solution=(Block, Llama),
    cases=cases,
    reference=llama.Llama,
    properties=(
        a_later_token_never_changes_an_earlier_prediction,
        the_order_of_tokens_matters,
        a_text_may_be_longer_than_any_before,
        embeddings_are_tied_where_the_configuration_says_so,
        it_writes_what_the_reference_writes,
    ),
    hints=paragraphs(
        """
        The block has two lines, one for each sub-layer, as GPT-2's; only attention takes RoPE's `cos` and `sin` too.
        `__init__` of the model begins with `super().__init__()`, has one line for each row of the table, and a
        condition for the tying.

        In `forward`, RoPE and the mask are made once, before the blocks: `cos, sin = rope_cos_sin(torch.arange(seq),
        default_inv_freq(self.config.head_dim, self.config.rope_theta))`, and `mask = rearrange(causal_mask(seq), "seq
        seq_k -> 1 1 seq seq_k")`. To the tokens' embeddings nothing is added.

        The block: `x_mid = x + self.attention(self.attention_norm(x), cos, sin, mask)`, then `return x_mid +
        self.mlp(self.mlp_norm(x_mid))`. The model: `for block in self.blocks: x = block(x, cos, sin, mask)`, then
        `return self.unembedding(self.final_norm(x))`.
        """
    ),
    page="llama.html#Llama",
    part_of="allformers.models.llama.llama.Llama",
    prerequisites=("gpt2", "rotary", "rms-norm", "grouped-query-attention", "swiglu"),
)
