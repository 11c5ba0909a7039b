"""Timing against the reference: the same weights, the same threads, one process, in turns.

A single time says little on a machine that others use too, so every round times every contender once, one after the
other, and what counts is the ratio within a round. Shape checks are on.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from allformers.checkpoints import checkpoint_tensors, write_config
from allformers.linear import Linear
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.training import Recipe, make_optimizer, next_token_loss

OURS = "allformers"
PEERS = {"transformers, eager": "eager", "transformers, sdpa": "sdpa"}


class Timing(NamedTuple):
    """One row of the result.

    Attributes:
        row: what was done.
        milliseconds: for each contender, of each round; for decoding, of one token of every sequence.
        ratio: how many times as long as ours the fastest peer takes, the median over rounds; above 1, ours is faster.
    """

    row: str
    milliseconds: dict[str, list[float]]
    ratio: float

    def median(self, contender: str) -> float:
        """A contender's median time."""
        return statistics.median(self.milliseconds[contender])


def contenders(config: GPT2Config, seed: int = 0) -> dict[str, Any]:
    """Our model and the reference's variants, all with the same random weights, room for all rows, and no dropout.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import GPT2Config as ReferenceConfig
        from transformers import GPT2LMHeadModel
    except ImportError as error:
        raise ImportError('the benchmark needs transformers to compare with: pip install "allformers[test]"') from error
    torch.manual_seed(seed)
    config = dataclasses.replace(config, context_length=max(config.context_length, 1024), dropout=0.0)
    ours = GPT2(config).eval()
    models: dict[str, Any] = {OURS: ours}
    description = {**write_config(GPT2.format, config), "bos_token_id": None, "eos_token_id": None}
    for name, attention in PEERS.items():
        reference: Any = ReferenceConfig(**description)
        reference._attn_implementation = attention
        peer: Any = GPT2LMHeadModel(reference)
        peer.load_state_dict(checkpoint_tensors(ours), strict=False)  # the tied head is not among them
        models[name] = peer.eval()
    return models


def largest_difference(models: dict[str, Any], token_ids: Tensor) -> float:
    """The largest difference between any peer's logits and ours, relative to the largest logit."""
    with torch.inference_mode():
        ours = models[OURS](token_ids)
        peers = [models[name](token_ids).logits for name in PEERS]
        return max(((peer - ours).abs().max() / ours.abs().max()).item() for peer in peers)


def run(config: GPT2Config, rows: Sequence[str] = (), rounds: int = 5) -> Iterator[Timing]:
    """Time the rows whose names contain one of `rows` (all of them if none is given), one after the other.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no row is called so, or there are no rounds.
    """
    chosen = {name: make for name, make in ROWS.items() if not rows or any(part in name for part in rows)}
    if not chosen:
        raise ValueError(f"no row is called {' or '.join(rows)}; there are: {', '.join(ROWS)}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    models = contenders(config) if any("linear" not in name for name in chosen) else {}
    for name, make in chosen.items():
        jobs = make(models)
        times: dict[str, list[float]] = {contender: [] for contender in jobs}
        for count in range(rounds + 1):
            for contender, job in jobs.items():
                milliseconds = job()
                if count:  # the first round only warms up
                    times[contender].append(milliseconds)
        ratios = [min(peers) / ours for ours, *peers in zip(*times.values(), strict=True)]
        yield Timing(name, times, statistics.median(ratios))


Jobs = dict[str, Callable[[], float]]


def _random_ids(models: dict[str, Any], batch: int, seq: int) -> Tensor:
    return torch.randint(models[OURS].config.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(0))


def _prefill(models: dict[str, Any], batch: int, seq: int) -> Jobs:
    """A forward pass over a prompt, logits of every position."""
    token_ids = _random_ids(models, batch, seq)

    def job(model: Any) -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            model(token_ids)
            return (time.perf_counter() - start) * 1e3

    return {name: lambda model=model: job(model) for name, model in models.items()}  # type: ignore[misc]


class _Clock:
    """A streamer, as the reference calls what it hands each new token to, that only notes when it comes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, token: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _decode(models: dict[str, Any], batch: int, prompt: int, new: int) -> Jobs:
    """Greedy decoding, each side by its own generation loop: the mean time of a step after the first token."""
    token_ids = _random_ids(models, batch, prompt)

    def ours() -> float:
        clock = _Clock()
        for token in models[OURS].stream(token_ids, max_new_tokens=new + 1, temperature=0):
            clock.put(token)
        return (clock.times[-1] - clock.times[0]) / new * 1e3

    def peer(model: Any) -> float:
        clock = _Clock()
        model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            do_sample=False,
            max_new_tokens=new + 1,
            min_new_tokens=new + 1,
            pad_token_id=0,
            streamer=clock,
        )
        return (clock.times[-1] - clock.times[1]) / new * 1e3  # the first thing put is the prompt

    return {OURS: ours, **{name: lambda model=models[name]: peer(model) for name in PEERS}}  # type: ignore[misc]


def _train(models: dict[str, Any], batch: int, seq: int) -> Jobs:
    """One training step: forward, loss, backward, fused AdamW; the same loss function and no dropout."""
    token_ids = _random_ids(models, batch, seq + 1)
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]

    def job(name: str, optimizer: torch.optim.Optimizer) -> float:
        start = time.perf_counter()
        output = models[name](inputs)
        next_token_loss(output if name == OURS else output.logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        return (time.perf_counter() - start) * 1e3

    optimizers = {name: make_optimizer(model, Recipe()) for name, model in models.items()}
    return {name: lambda name=name: job(name, optimizers[name]) for name in models}  # type: ignore[misc]


def _linear(rows: int, inputs: int, outputs: int) -> Jobs:
    """One linear layer on as many rows: ours beside PyTorch's, on so many weights in turn that no cache holds them."""
    x = torch.randn(rows, inputs)
    layers = [Linear(inputs, outputs, bias=False) for _ in range(max(2, 2**26 // (inputs * outputs)))]

    def ours() -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            for layer in layers:
                layer(x)
            return (time.perf_counter() - start) / len(layers) * 1e3

    def peer() -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            for layer in layers:
                F.linear(x, layer.weight)
            return (time.perf_counter() - start) / len(layers) * 1e3

    return {OURS: ours, "F.linear": peer}


ROWS: dict[str, Callable[[dict[str, Any]], Jobs]] = {
    "prefill 1x512": lambda models: _prefill(models, 1, 512),
    "prefill 8x128": lambda models: _prefill(models, 8, 128),
    "decode 128+64, batch 1": lambda models: _decode(models, 1, 128, 64),
    "decode 128+64, batch 8": lambda models: _decode(models, 8, 128, 64),
    "train 4x256": lambda models: _train(models, 4, 256),
    "linear 512 x 768 to 3072": lambda _: _linear(512, 768, 3072),
    "linear 1 x 768 to 50257": lambda _: _linear(1, 768, 50257),
}
"""What is timed, by name: batch x sequence, prompt + new tokens, or rows x inputs to outputs."""
