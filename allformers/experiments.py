"""Experiments that answer a learner's questions: each a question, numbers, a figure, and a sentence that they support.

    from allformers.experiments import EXPERIMENTS
    print(EXPERIMENTS["scale"]().conclusion)

Each runs in seconds on a processor, on the bundled model or on fresh ones. Conclusions are put together from the
numbers, so they say what was measured here and not what is usually said.
"""

import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers import figures
from allformers.cache import Cache, LayerCache
from allformers.inspection import capture, on_meta, summarise, trace
from allformers.inspection.compare import entropy
from allformers.models import load
from allformers.models.gpt2.gpt2 import GPT2, Block, CausalSelfAttention, GPT2Config
from allformers.recipes import hello_world
from allformers.rotary import angles, frequencies, rotate, turns
from allformers.sampling import apply_temperature, keep_top_k, keep_top_p
from allformers.shapes import checked
from allformers.tokenizers import ByteTokenizer
from allformers.training.data import HELLO_WORLD, python_documentation
from allformers.training.loop import Trainer, make_optimizer, next_token_loss
from allformers.training.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROMPT = "The for statement is used to iterate"


@dataclass(frozen=True)
class Experiment:
    """What came of an experiment.

    Attributes:
        question: what it answers.
        numbers: what was measured, by name.
        conclusion: what they say.
        figure: what they look like.
    """

    question: str
    numbers: Mapping[str, Any]
    conclusion: str
    figure: "Figure"


@checked
def _ids(text: str) -> Int[Tensor, "batch seq"]:
    return rearrange(torch.tensor(ByteTokenizer().encode(text)), "seq -> 1 seq")


@torch.no_grad()
def causal_mask() -> Experiment:
    """Why does the causal mask make training parallel, and generation one token at a time?"""
    model = load("bundled")
    token_ids = _ids(PROMPT)
    length = token_ids.shape[1]
    whole = model(token_ids)[0]
    alone = torch.stack([model(token_ids[:, : place + 1])[0, -1] for place in range(length)])
    difference = (whole - alone).abs().max().item()

    influence = {}
    for name, edits in {"with the mask": {}, "without": {"mask": torch.zeros_like}}.items():
        with capture(model, "logits", edits=edits):
            before = model(token_ids)[0]
            rows = []
            for place in range(length):
                other = token_ids.clone()
                other[0, place] = (other[0, place] + 1) % 256
                rows.append((model(other)[0] - before).abs().amax(-1))
        influence[name] = torch.stack(rows)
    backwards = {name: float(rows.tril(-1).max()) for name, rows in influence.items()}

    figure = figures.maps(
        {f"{name}: change of the logits": rows.sqrt() for name, rows in influence.items()},
        [figures.label(ByteTokenizer(), int(token)) for token in token_ids[0]],
        "position that answers",
        "token that was changed",
    )
    return Experiment(
        question=_question(causal_mask),
        numbers={
            "positions": length,
            "largest difference between one pass and a pass for each prefix": difference,
            "largest change of an earlier answer, with the mask": backwards["with the mask"],
            "largest change of an earlier answer, without": backwards["without"],
        },
        conclusion=(
            f"One pass over {length} tokens gives the answers of {length} passes over its first one, two, three ... "
            f"tokens, to within {difference:.0e}: with the mask, changing a token changes no earlier answer "
            f"({backwards['with the mask']:.0f}), so all questions of a text can be asked at once. Without it, "
            f"earlier answers change by up to {backwards['without']:.1f}: they have seen what they should guess. The "
            "other side of it is generation: an answer can only be had once every token before it is known."
        ),
        figure=figure,
    )


class PostNormBlock(Block):
    """GPT-1's order, as in the original transformer: add first, then normalise the stream itself."""

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        blocked: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Add what attention and then the MLP make of the stream, and normalise it after each."""
        between = self.attention_norm(x + self.attention(x, blocked, cache))
        return self.mlp_norm(between + self.mlp(between))


def pre_norm(depths: tuple[int, ...] = (6, 12, 24, 48)) -> Experiment:
    """Why do the norms stand before the sub-layers (pre-norm) and not after them?

    Source: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", arXiv:2002.04745.
    """
    text = torch.tensor(ByteTokenizer().encode(python_documentation()[:20_000]))
    tokens = rearrange(text[: 8 * 65], "(batch seq) -> batch seq", seq=65)
    orders = {"pre-norm": Block, "post-norm": PostNormBlock}
    lengths: dict[str, dict[int, list[float]]] = {name: {} for name in orders}
    for name, block_class in orders.items():
        for depth in depths:
            model = _deep_model(depth, block_class)
            next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()
            gradients = [model.get_parameter(f"blocks.{layer}.mlp.down.weight").grad for layer in range(depth)]
            lengths[name][depth] = [float(gradient.norm()) for gradient in gradients if gradient is not None]
    last = {name: [found[depth][-1] for depth in depths] for name, found in lengths.items()}
    deepest = {name: found[depths[-1]] for name, found in lengths.items()}
    times = depths[-1] / depths[0]
    shrunk = {name: values[-1] / values[0] for name, values in last.items()}
    figure = figures.plots_of(
        (f"gradient of each layer's MLP, {depths[-1]} layers", deepest, range(depths[-1]), "layer"),
        ("gradient of the last layer's MLP", last, depths, "layers in the model"),
        log=(False, True),
    )
    return Experiment(
        question=_question(pre_norm),
        numbers={"layers": depths, "gradient of the last layer": last, "gradient by layer, deepest model": deepest},
        conclusion=(
            f"In a fresh model {times:.0f} times as deep, all layers move at once, so each should move less. With "
            f"pre-norm it does: the gradient of the last layer becomes {shrunk['pre-norm']:.2f} times as long (in "
            f"theory 1/√{times:.0f} = {times**-0.5:.2f}). With post-norm it becomes {shrunk['post-norm']:.2f} times "
            "as long, and the first steps of a deep model are together too large. By that, Xiong et al. 2020 explain "
            "why post-norm models need a warm-up; this experiment measures the gradients only."
        ),
        figure=figure,
    )


def _deep_model(layers: int, block_class: type[Block]) -> GPT2:
    """A narrow, deep, fresh model, its matrices drawn as in the original transformer (Xavier)."""
    config = GPT2Config(
        vocab_size=256,
        context_length=64,
        embedding_dim=64,
        num_layers=layers,
        num_heads=4,
        mlp_dim=256,
        dropout=0.0,
    )
    torch.manual_seed(0)
    model = GPT2(config)
    for block in model.blocks:
        block.__class__ = block_class
        for matrix in block.parameters():
            if matrix.ndim == 2:
                nn.init.xavier_normal_(matrix)
    if block_class is PostNormBlock:  # its last block ends with a norm
        model.final_norm = nn.Identity()  # type: ignore[assignment]
    return model


def _question(experiment: Callable[..., Experiment]) -> str:
    """The first line of an experiment's docstring."""
    return (experiment.__doc__ or "").splitlines()[0]


@torch.no_grad()
def positions() -> Experiment:
    """What do learned positions mean beyond the length that a model was trained on?"""
    model = load("bundled")
    trained = model.config.context_length
    longer = GPT2(dataclasses.replace(model.config, context_length=2 * trained)).eval()
    state = longer.state_dict()
    torch.manual_seed(0)
    for name, weight in model.state_dict().items():
        state[name][: len(weight)] = weight  # positions beyond the trained ones keep their random vectors
    refusal = ""
    try:
        model(torch.zeros(1, trained + 1, dtype=torch.long))
    except ValueError as error:
        refusal = str(error)
    text = torch.tensor(ByteTokenizer().encode(python_documentation()))[-16 * (2 * trained + 1) :]
    tokens = rearrange(text, "(batch seq) -> batch seq", batch=16)
    logits = longer(tokens[:, :-1])
    surprises = nn.functional.cross_entropy(
        rearrange(logits, "batch seq vocab -> batch vocab seq"), tokens[:, 1:], reduction="none"
    )
    by_place = surprises.mean(0)
    parts = rearrange(by_place, "(batch seq) -> batch seq", seq=16).mean(-1).tolist()
    within, beyond = float(by_place[trained // 2 : trained].mean()), float(by_place[trained:].mean())
    figure = figures.lines_by_place(
        {"loss": parts}, [str(16 * part) for part in range(len(parts))], "position", "loss, in nats a token"
    )
    return Experiment(
        question=_question(positions),
        numbers={"trained length": trained, "loss within": within, "loss beyond": beyond, "refusal": refusal},
        conclusion=(
            f"There is a vector for each of {trained} positions and none for the next: the model refuses a longer "
            f"text. Given random vectors for twice as many, it loses {within:.2f} nats a token on the second half of "
            f"what it knows and {beyond:.2f} beyond: a learned position says nothing about one that was never trained."
        ),
        figure=figure,
    )


class RotaryAttention(CausalSelfAttention):
    """GPT-2's attention with two lines more: queries and keys are turned by their positions."""

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        blocked: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Let each position gather from itself and the positions before it, knowing how far away they are."""
        fused = self.query_key_value(x)
        queries, keys, values = rearrange(
            fused,
            "batch seq (three heads head_dim) -> three batch heads seq head_dim",
            three=3,
            heads=self.config.num_heads,
        )
        start = 0 if cache is None else cache.cache.length
        speeds = frequencies(queries.shape[-1], 10_000.0)
        turned = turns(angles(torch.arange(start, start + x.shape[1]), speeds))
        queries, keys = rotate(queries, turned), rotate(keys, turned)
        if cache is not None:
            keys, values = cache.append(keys, values)
        scores = einsum(
            queries * self.scale,
            keys,
            "batch heads seq_q head_dim, batch heads seq_k head_dim -> batch heads seq_q seq_k",
        )
        scores = torch.where(blocked, torch.finfo(scores.dtype).min, scores)
        weights = self.weights_dropout(nn.functional.softmax(scores, dim=-1))
        mixed = einsum(
            weights, values, "batch heads seq_q seq_k, batch heads seq_k head_dim -> batch heads seq_q head_dim"
        )
        merged = rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")
        return self.output_dropout(self.output(merged))


class RotaryGPT2(GPT2):
    """GPT-2 with rotary positions in place of learned ones. The table of learned ones is there and is not used."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        for layer, block in enumerate(self.blocks):
            block.attention = RotaryAttention(config, layer)
        self.initialise()

    @checked
    def embed(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """Look up each token's vector, and nothing else."""
        return self.embedding_dropout(self.token_embedding(token_ids))


def rotary(steps: int = 300, trained: int = 32) -> Experiment:
    """What do rotary positions know of places that were never trained, beside learned ones?"""
    text = torch.tensor(ByteTokenizer().encode(python_documentation()))
    recipe = Recipe(
        corpus="python-docs",
        model=GPT2Config(
            vocab_size=256,
            context_length=4 * trained,
            embedding_dim=64,
            num_layers=3,
            num_heads=4,
            mlp_dim=256,
            dropout=0.0,
        ),
        steps=steps,
        batch_size=32,
        seq_length=trained,
        learning_rate=3e-3,
        final_learning_rate=1e-4,
        warmup_steps=50,
    )
    unseen = text[-(len(text) // 10) :]
    starts = torch.linspace(0, len(unseen) - 4 * trained - 1, 128).long().tolist()
    windows = torch.cat([rearrange(unseen[start : start + 4 * trained + 1], "seq -> 1 seq") for start in starts])
    by_place: dict[str, list[float]] = {}
    within, beyond = {}, {}
    for name, model_class in {"rotary": RotaryGPT2, "learned": GPT2}.items():
        torch.manual_seed(recipe.seed)
        trainer = Trainer(model_class(recipe.model), text[: -len(unseen)], recipe)
        for _ in range(steps):
            trainer.advance()
        with torch.no_grad():
            logits = trainer.model.eval()(windows[:, :-1])
            surprises = nn.functional.cross_entropy(
                rearrange(logits, "batch seq vocab -> batch vocab seq"), windows[:, 1:], reduction="none"
            ).mean(0)
        by_place[name] = rearrange(surprises, "(batch seq) -> batch seq", seq=4).mean(-1).tolist()
        within[name] = float(surprises[trained // 2 : trained].mean())
        beyond[name] = float(surprises[trained : 2 * trained].mean())
    places = [str(4 * part) for part in range(len(by_place["rotary"]))]
    figure = figures.lines_by_place(by_place, places, "position", "loss, in nats a token")
    rise = {name: beyond[name] - within[name] for name in by_place}
    return Experiment(
        question=_question(rotary),
        numbers={"trained length": trained, "steps": steps, "loss within": within, "loss beyond": beyond},
        conclusion=(
            f"Two small models learned from passages of {trained} tokens, in {steps} steps each. At places that they "
            f"know the rotary one loses {within['rotary']:.2f} nats a token and the learned one "
            f"{within['learned']:.2f}. At the next {trained} places, which neither has met, they lose "
            f"{beyond['rotary']:.2f} and {beyond['learned']:.2f}: {rise['rotary']:.2f} and {rise['learned']:.2f} more. "
            "A rotary model meets new distances there, a learned one vectors that nobody has trained."
        ),
        figure=figure,
    )


def shifted_targets(steps: int = 100) -> Experiment:
    """Why are the targets shifted by one?"""
    recipe = hello_world()
    tokens = torch.tensor([sorted(set(HELLO_WORLD)).index(character) for character in HELLO_WORLD])
    inputs, answers = rearrange(tokens[:-1], "seq -> 1 seq"), rearrange(tokens[1:], "seq -> 1 seq")
    losses: dict[str, list[float]] = {"asked for the next token": [], "asked for the token it reads": []}
    truth: dict[str, float] = {}
    written: dict[str, str] = {}
    for name, targets in zip(losses, (answers, inputs), strict=True):
        torch.manual_seed(0)
        model = GPT2(recipe.model)
        optimizer = make_optimizer(model, recipe)
        for _ in range(steps):
            loss = next_token_loss(model(inputs), targets)
            losses[name].append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            truth[name] = next_token_loss(model.eval()(inputs), answers).item()
        ids = model.generate(inputs[:, :1], max_new_tokens=12, temperature=0)[0].tolist()
        written[name] = "".join(sorted(set(HELLO_WORLD))[token] for token in ids)
    (shifted, unshifted) = losses
    figure = figures.plots_of(("the loss that each is trained on", losses, range(steps), "step"), log=(False, False))
    return Experiment(
        question=_question(shifted_targets),
        numbers={
            "last loss, shifted": losses[shifted][-1],
            "last loss, not shifted": losses[unshifted][-1],
            "loss at the next token, shifted": truth[shifted],
            "loss at the next token, not shifted": truth[unshifted],
            "written, shifted": written[shifted],
            "written, not shifted": written[unshifted],
        },
        conclusion=(
            "Asked for the token that it is just reading, a model learns to copy: its loss falls to "
            f"{losses[unshifted][-1]:.3f}, but at the token that really comes next it is {truth[unshifted]:.1f}, "
            f"worse than guessing evenly ({math.log(recipe.model.vocab_size):.1f}), and it writes "
            f"{written[unshifted]!r}. Asked for the next one, it reaches {truth[shifted]:.3f} and writes "
            f"{written[shifted]!r}."
        ),
        figure=figure,
    )


@torch.no_grad()
def sampling() -> Experiment:
    """What do temperature, top-k and top-p do to a distribution?"""
    model = load("bundled")
    logits = model(_ids("The "))[:, -1]
    settings = {
        "as it is": logits,
        "temperature 0.5": apply_temperature(logits, 0.5),
        "temperature 1.5": apply_temperature(logits, 1.5),
        "top-k 5": keep_top_k(logits, 5),
        "top-p 0.8": keep_top_p(logits, 0.8),
    }
    order = logits[0].argsort(descending=True)
    probabilities = {name: scores.float().softmax(-1)[0][order] for name, scores in settings.items()}
    bits = {name: float(entropy(row)) for name, row in probabilities.items()}
    kept = {name: int((row > 0).sum()) for name, row in probabilities.items()}
    labels = [figures.label(ByteTokenizer(), int(token)) for token in order[:16]]
    figure = figures.bars({name: row[:16].tolist() for name, row in probabilities.items()}, labels, "probability")
    return Experiment(
        question=_question(sampling),
        numbers={"entropy in bits": bits, "tokens that can be drawn": kept},
        conclusion=(
            f"After 'The ' the model is unsure by {bits['as it is']:.1f} bits. Temperature changes how unsure "
            f"({bits['temperature 0.5']:.1f} bits at 0.5, {bits['temperature 1.5']:.1f} at 1.5) and leaves all "
            f"{kept['temperature 0.5']} tokens possible, in the same order; top-k 5 leaves {kept['top-k 5']} possible "
            f"and top-p 0.8 leaves {kept['top-p 0.8']}, and what the others had is shared out in proportion."
        ),
        figure=figure,
    )


@torch.no_grad()
def scale() -> Experiment:
    """Why are attention scores divided by the square root of head_dim?"""
    torch.manual_seed(0)
    widths = [4, 8, 16, 32, 64, 128, 256]
    spread: dict[str, list[float]] = {"q · k": [], "q · k / √head_dim": []}
    sure: dict[str, list[float]] = {name: [] for name in spread}
    for width in widths:
        queries, keys = torch.randn(500, width), torch.randn(64, width)
        scores = einsum(queries, keys, "seq_q head_dim, seq_k head_dim -> seq_q seq_k")
        for name, factor in zip(spread, (1.0, width**-0.5), strict=True):
            spread[name].append(float((scores * factor).var()))
            sure[name].append(float((scores * factor).softmax(-1).amax(-1).mean()))
    plain, scaled = sure.values()
    figure = figures.side_by_side(
        {"variance of the scores": spread, "largest of 64 weights, on average": sure},
        widths,
        "head_dim",
        log=(True, False),
    )
    return Experiment(
        question=_question(scale),
        numbers={"head_dim": widths, "variance": spread, "largest weight": sure},
        conclusion=(
            f"The variance of the scores of random queries and keys is {spread['q · k'][0]:.1f} in heads of width "
            f"{widths[0]} and {spread['q · k'][-1]:.0f} at width {widths[-1]}, since as many terms are added up. "
            f"Softmax then gives {plain[-1]:.0%} of the weight to one of 64 keys, and where one key has it all no "
            "gradient reaches the others. Divided by √head_dim, the variance is "
            f"{min(spread['q · k / √head_dim']):.2f} to {max(spread['q · k / √head_dim']):.2f} and the largest weight "
            f"{scaled[-1]:.0%} at any width."
        ),
        figure=figure,
    )


@torch.no_grad()
def kv_cache() -> Experiment:
    """What does the cache of keys and values save?"""
    config = GPT2Config.gpt2_small()
    empty = on_meta(GPT2, config)
    model = load("bundled")
    lengths = [16, 32, 64, 128, 256]
    flops: dict[str, list[float]] = {"the whole text again": [], "with the cache": []}
    seconds: dict[str, list[float]] = {name: [] for name in flops}
    for length in lengths:
        meta_ids = torch.zeros(1, length, dtype=torch.long, device="meta")
        cache = empty.make_cache()
        empty(meta_ids[:, :-1], cache=cache)
        flops["the whole text again"].append(trace(empty, meta_ids).flops / 1e9)
        flops["with the cache"].append(trace(empty, meta_ids[:, -1:], cache=cache).flops / 1e9)

        token_ids = _ids(python_documentation()[:length])
        filled = model.make_cache()
        model(token_ids[:, :-1], cache=filled)
        times: dict[str, list[float]] = {name: [] for name in flops}
        for _ in range(7):
            one = copy.deepcopy(filled)
            for name, call in zip(
                flops, (partial(model, token_ids), partial(model, token_ids[:, -1:], cache=one)), strict=True
            ):
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
        for name, found in times.items():
            seconds[name].append(statistics.median(found))
    again, cached = flops.values()
    slow, fast = seconds.values()
    per_token = summarise(GPT2, config).cache_bytes_per_token
    figure = figures.side_by_side(
        {"GPT-2 small: GFLOPs for one more token": flops, "bundled model: milliseconds, measured": seconds},
        lengths,
        "tokens in the text",
        log=(True, True),
    )
    return Experiment(
        question=_question(kv_cache),
        numbers={"lengths": lengths, "GFLOPs": flops, "milliseconds": seconds, "bytes a token": per_token},
        conclusion=(
            f"At {lengths[-1]} tokens one more takes GPT-2 small {again[-1]:.1f} GFLOPs if the whole text is read "
            f"again and {cached[-1]:.3f} with the cache, {again[-1] / cached[-1]:.0f} times less; without it a token "
            f"costs the more the longer the text, with it nearly the same. The bundled model took {slow[-1]:.1f} ms "
            f"and {fast[-1]:.1f} ms here. The price is memory: {per_token / 1024:.0f} KiB for each token of GPT-2 "
            "small."
        ),
        figure=figure,
    )


def weight_tying() -> Experiment:
    """What does tying the unembedding to the token embedding save?"""
    shares: dict[str, list[float]] = {"tied": [], "untied": []}
    presets = {name: make() for name, make in GPT2Config.presets().items()}
    for config in presets.values():
        for name, tied in zip(shares, (True, False), strict=True):
            one = summarise(GPT2, dataclasses.replace(config, tie_embeddings=tied))
            shares[name].append(one.parameters)
    saved = {
        name: 1 - tied / untied for name, tied, untied in zip(presets, shares["tied"], shares["untied"], strict=True)
    }
    small, large = saved["gpt2_small"], saved["gpt2_xl"]
    figure = figures.bars({"share of all parameters": list(saved.values())}, list(saved), "saved")
    return Experiment(
        question=_question(weight_tying),
        numbers={"parameters": {name: dict(zip(presets, row, strict=True)) for name, row in shares.items()}, **saved},
        conclusion=(
            "One matrix of vocab x embed numbers instead of two. Of the parameters that there would be without "
            f"tying, that saves {small:.0%} in GPT-2 small and {large:.0%} in XL, since the blocks grow with the "
            "square of the width and the vocabulary's matrix only in proportion to it."
        ),
        figure=figure,
    )


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    make.__name__.replace("_", "-"): make
    for make in (causal_mask, pre_norm, positions, rotary, shifted_targets, sampling, scale, kv_cache, weight_tying)
}
"""The experiments by the names that the command line uses."""
