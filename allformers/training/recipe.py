"""What decides a training run: one frozen record, checked when it is made."""

import math
from dataclasses import dataclass
from typing import Any

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training run does. The same recipe on the same machine gives the same weights.

    Attributes:
        model: the model's configuration, such as a `GPT2Config`; its `vocab_size` follows the tokenizer.
        corpus: what to learn from: the name of a corpus, a text file, a folder, or - for standard input.
        tokenizer: how the text is cut: bytes, characters or gpt2.
        vocab_multiple: the vocabulary is padded to a multiple of this, since GPUs multiply round sizes faster.
        start: a checkpoint to go on from (a folder or a name on the hub); fresh weights if empty.
        steps: optimiser steps.
        batch_size: sequences in a step, of all processes together.
        micro_batch_size: sequences that a process passes through the model at once; the gradients of a step's parts are
            added up. All at once if None.
        seq_length: tokens that each sequence predicts.
        learning_rate: its highest value, reached after the warm-up.
        final_learning_rate: where the cosine decay ends.
        warmup_steps: steps over which the learning rate rises from zero, while Adam's averages settle.
        weight_decay: how strongly matrices are pulled towards zero; biases and norms are not.
        beta1: memory of AdamW's average of gradients.
        beta2: memory of AdamW's average of squared gradients.
        clip_norm: gradients longer than this are shortened to it.
        precision: float32, or bfloat16 for matrix products in bfloat16 (autocast) on weights in float32.
        compile: whether to compile the model with `torch.compile`: a minute at the start, faster steps.
        recompute: whether to keep only what enters each block, and compute the rest again on the way back: less memory,
            more work.
        seed: of the initial weights, the batches and dropout.
        validation_fraction: how much of the text, at its end, is kept apart to measure on; 0 measures nothing.
        validation_tokens: measure on that many of these tokens at most; on all if None.
        validate_every: steps between two measurements; there is one at the end in any case.
        sample_every: steps between two samples of what the model writes; 0 for none but the one at the end.
        sample_tokens: how much a sample writes.
        temperature: how freely; 0 is always the likeliest token.
        prompt: what a sample goes on from; if empty, the end-of-text token or else the first token of the text.
        log_every: steps between two lines of metrics.
        save_every: steps between two checkpoints; there is one at the end in any case.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    model: Any
    corpus: str
    tokenizer: str = "bytes"
    vocab_multiple: int = 1
    start: str = ""
    steps: int
    batch_size: int
    micro_batch_size: int | None = None
    seq_length: int
    learning_rate: float
    final_learning_rate: float
    warmup_steps: int = 0
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    clip_norm: float = 1.0
    precision: str = "float32"
    compile: bool = False
    recompute: bool = False
    seed: int = 0
    validation_fraction: float = 0.1
    validation_tokens: int | None = None
    validate_every: int = 500
    sample_every: int = 0
    sample_tokens: int = 200
    temperature: float = 0.8
    prompt: str = ""
    log_every: int = 1
    save_every: int = 500

    def __post_init__(self) -> None:
        counts = ("vocab_multiple", "steps", "batch_size", "seq_length", "validate_every", "log_every", "save_every")
        for name in (*counts, "micro_batch_size", "validation_tokens"):
            value = getattr(self, name)
            if (value is not None or name in counts) and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in (
            "final_learning_rate",
            "warmup_steps",
            "weight_decay",
            "sample_every",
            "sample_tokens",
            "temperature",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("beta1", "beta2", "validation_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, not {self.precision!r}")
        if self.seq_length > self.model.context_length:
            raise ValueError(
                f"seq_length {self.seq_length} is more than the model's context_length {self.model.context_length}"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step learns to predict."""
        return self.batch_size * self.seq_length
