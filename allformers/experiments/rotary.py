"""Rotary positions (RoPE) beside learned ones, beyond the length of training."""

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allformers.experiments.experiment import Experiment, question_of
from allformers.inputs.tokenizers import ByteTokenizer
from allformers.inspection import figures
from allformers.models.gpt2.gpt2 import GPT2, CausalSelfAttention, GPT2Config
from allformers.nn.cache import Cache, LayerCache
from allformers.nn.rope import apply_rope, default_inv_freq, rope_cos_sin
from allformers.nn.shapes import checked
from allformers.training.data import python_documentation
from allformers.training.loop import Trainer
from allformers.training.recipes import Recipe


class RotaryAttention(CausalSelfAttention):
    """GPT-2's attention with RoPE: queries and keys are rotated by an angle proportional to their position."""

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Causal self-attention with RoPE. Arguments as for GPT-2's attention."""
        queries, keys, values = rearrange(
            self.query_key_value(x),
            "batch seq (qkv heads head_dim) -> qkv batch heads seq head_dim",
            qkv=3,
            heads=self.config.num_heads,
        )
        # RoPE: these three lines are new.
        start = 0 if cache is None else cache.cache.length
        cos, sin = rope_cos_sin(
            torch.arange(start, start + x.shape[1]), default_inv_freq(self.config.head_dim, 10000.0)
        )
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)
        if cache is not None:
            keys, values = cache.append(keys, values)
        scores = einsum(
            queries / math.sqrt(self.config.head_dim),
            keys,
            "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq seq_k",
        )
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
        weights = self.weights_dropout(F.softmax(scores, dim=-1))
        mixed = einsum(weights, values, "batch heads seq seq_k, batch heads seq_k head_dim -> batch heads seq head_dim")
        merged = rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")
        return self.output_dropout(self.output(merged))


class RotaryGPT2(GPT2):
    """GPT-2 with RoPE in place of learned positions. The table of learned ones is there and is not used."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        for block in self.blocks:
            block.attention = RotaryAttention(config)
        self.initialise()

    @checked
    def embed(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """Look up each token's embedding, and add no position."""
        return self.embedding_dropout(self.token_embedding(token_ids))


def rotary(steps: int = 300, trained: int = 32) -> Experiment:
    """Do rotary positions work beyond the length of training, and learned ones?"""
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
    by_position: dict[str, list[float]] = {}
    within, beyond = {}, {}
    for name, model_class in {"rotary": RotaryGPT2, "learned": GPT2}.items():
        torch.manual_seed(recipe.seed)
        trainer = Trainer(model_class(recipe.model), text[: -len(unseen)], recipe)
        for _ in range(steps):
            trainer.train_step()
        with torch.no_grad():
            logits = trainer.model.eval()(windows[:, :-1])
            losses = F.cross_entropy(
                rearrange(logits, "batch seq vocab -> batch vocab seq"), windows[:, 1:], reduction="none"
            ).mean(0)
        by_position[name] = rearrange(losses, "(batch seq) -> batch seq", seq=4).mean(-1).tolist()
        within[name] = float(losses[trained // 2 : trained].mean())
        beyond[name] = float(losses[trained : 2 * trained].mean())
    x_labels = [str(4 * part) for part in range(len(by_position["rotary"]))]
    figure = figures.line_plot(by_position, x_labels, "position", "loss, in nats a token")
    rise = {name: beyond[name] - within[name] for name in by_position}
    return Experiment(
        question=question_of(rotary),
        numbers={"trained length": trained, "steps": steps, "loss within": within, "loss beyond": beyond},
        conclusion=(
            f"Two small models learned from passages of {trained} tokens, in {steps} steps each. At trained positions "
            f"the rotary one loses {within['rotary']:.2f} nats a token and the learned one "
            f"{within['learned']:.2f}. At the next {trained} positions, which neither was trained on, they lose "
            f"{beyond['rotary']:.2f} and {beyond['learned']:.2f}: {rise['rotary']:.2f} and {rise['learned']:.2f} more. "
            "A rotary model meets new distances there, a learned one vectors that nobody has trained."
        ),
        figure=figure,
    )
