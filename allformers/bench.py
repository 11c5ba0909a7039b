"""Timing against the reference: the same weights, the same threads, one process, in turns.

A single time says little on a machine that others use too, so every round times every contender once, one after the
other, and what counts is the ratio within a round. Shape checks are on. Memory is measured too, each contender in a
process of its own.
"""

import dataclasses
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from allformers.checkpoints import checkpoint_tensors, write_config
from allformers.linear import Linear
from allformers.models import READING_ORDER
from allformers.recipes import gpt2_124m
from allformers.training.loop import make_optimizer, next_token_loss

OURS = "allformers"
PEERS = {"transformers, eager": "eager", "transformers, sdpa": "sdpa"}


class Row(NamedTuple):
    """One row of the result.

    Attributes:
        name: what was done.
        unit: ms (for decoding, of one token of every sequence) or MiB.
        measured: for each contender, of each round.
        ratio: how many times as much as ours the most frugal peer takes, the median over rounds; above 1, ours is
            faster, or smaller.
    """

    name: str
    unit: str
    measured: dict[str, list[float]]
    ratio: float

    def median(self, contender: str) -> float:
        """What a contender took, the median over rounds."""
        return statistics.median(self.measured[contender])


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the contenders run on and in.

    Attributes:
        device: where.
        precision: of matrix products in training, as in a recipe; the weights are float32.
        compile: whether everybody's model is compiled, for training.
    """

    device: str = "cpu"
    precision: str = "float32"
    compile: bool = False


def contenders(config: Any, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """Our model and the reference's variants, all with the same random weights, room for all rows, and no dropout.

    Raises:
        ImportError: transformers is not installed.
    """
    torch.manual_seed(seed)
    ours = contender(OURS, config)
    models: dict[str, Any] = {OURS: ours}
    for name in PEERS:
        models[name] = contender(name, config)
        _give_weights(ours, models[name])
    return {name: model.to(device) for name, model in models.items()}


def _give_weights(ours: Any, peer: Any) -> None:
    """Make a peer the same model as ours, by way of a file where it names its weights otherwise than its files do."""
    if not ours.format.from_disk:
        peer.load_state_dict(checkpoint_tensors(ours), strict=False)  # the tied head is not among them
        return
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        peer.load_state_dict(type(peer).from_pretrained(folder).state_dict())


def rows_for(config: Any) -> dict[str, Callable[[dict[str, Any], Any, Setting], "Jobs"]]:
    """What can be measured of a model: one that does not write is read with, and there is nothing to decode."""
    return ROWS if hasattr(model_of(config), "generate") else ENCODER_ROWS


def model_of(config: Any) -> Any:
    """The model that a configuration is for."""
    return next(made for entry in READING_ORDER if (made := entry.load()).format.config_class is type(config))


def contender(name: str, config: Any) -> Any:
    """One of them, with fresh weights.

    Raises:
        ImportError: it is one of transformers', which is not installed.
    """
    model_class = model_of(config)
    room = {"context_length": max(config.context_length, 1024)} if hasattr(model_class, "generate") else {}
    config = dataclasses.replace(config, dropout=0.0, **room)
    if name == OURS:
        return model_class(config).eval()
    try:
        import transformers
    except ImportError as error:
        raise ImportError('the benchmark needs transformers to compare with: pip install "allformers[test]"') from error
    description = write_config(model_class.format, config)
    description |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    reference: Any = transformers.AutoConfig.for_model(**description)
    reference._attn_implementation = PEERS[name]
    peer: Any = getattr(transformers, model_class.format.architecture)(reference)
    return peer.eval()


def largest_difference(models: dict[str, Any], given: Tensor) -> float:
    """The largest difference between any peer's logits and ours, relative to the largest logit."""
    with torch.inference_mode():
        ours = models[OURS](given)
        peers = [models[name](given).logits for name in PEERS]
        return max(((peer - ours).abs().max() / ours.abs().max()).item() for peer in peers)


def run(
    config: Any,
    rows: Sequence[str] = (),
    rounds: int = 5,
    setting: Setting = Setting(),
) -> Iterator[Row]:
    """Measure the rows whose names contain one of `rows` (all of them if none is given), one after the other.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no row is called so, or there are no rounds.
    """
    there = rows_for(config)
    chosen = {name: make for name, make in there.items() if not rows or any(part in name for part in rows)}
    if not chosen:
        raise ValueError(f"no row is called {' or '.join(rows)}; there are: {', '.join(there)}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    needed = any("linear" not in name and "memory" not in name for name in chosen)
    models = contenders(config, device=setting.device) if needed else {}
    for name, make in chosen.items():
        jobs = make(models, config, setting)
        measured: dict[str, list[float]] = {contender: [] for contender in jobs}
        warm_ups = 0 if "memory" in name else 1
        for count in range(rounds + warm_ups):
            for contender, job in jobs.items():
                taken = job()
                if count >= warm_ups:
                    measured[contender].append(taken)
        ratios = [min(peers) / ours for ours, *peers in zip(*measured.values(), strict=True)]
        yield Row(name, "MiB" if "memory" in name else "ms", measured, statistics.median(ratios))


Jobs = dict[str, Callable[[], float]]


def _random_ids(config: Any, setting: Setting, batch: int, seq: int) -> Tensor:
    ids = torch.randint(config.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(0))
    return ids.to(setting.device)


def _now(setting: Setting) -> float:
    """The time, in milliseconds, when the device has done what it was asked to."""
    if setting.device.startswith("cuda"):
        torch.cuda.synchronize(setting.device)
    return time.perf_counter() * 1e3


def _prefill(models: dict[str, Any], config: Any, setting: Setting, batch: int, seq: int) -> Jobs:
    """A forward pass over a prompt, logits of every position."""
    token_ids = _random_ids(config, setting, batch, seq)

    def job(model: Any) -> float:
        with torch.inference_mode():
            start = _now(setting)
            model(token_ids)
            return _now(setting) - start

    return {name: lambda model=model: job(model) for name, model in models.items()}  # type: ignore[misc]


def _read(models: dict[str, Any], config: Any, setting: Setting, batch: int) -> Jobs:
    """A forward pass of an encoder over all that it can read at once: a whole context, or images."""
    given = models[OURS].example(batch, config.context_length, setting.device)
    noise = torch.Generator().manual_seed(0)
    if given.is_floating_point():
        given = torch.randn(given.shape, generator=noise).to(setting.device)
    else:
        given = torch.randint(config.vocab_size, given.shape, generator=noise).to(setting.device)

    def job(model: Any) -> float:
        with torch.inference_mode():
            start = _now(setting)
            model(given)
            return _now(setting) - start

    return {name: lambda model=model: job(model) for name, model in models.items()}  # type: ignore[misc]


class _Clock:
    """A streamer, as the reference calls what it hands each new token to, that only notes when it comes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, token: object) -> None:
        self.times.append(time.perf_counter() * 1e3)

    def end(self) -> None:
        pass


def _decode(models: dict[str, Any], config: Any, setting: Setting, batch: int, prompt: int, new: int) -> Jobs:
    """Greedy decoding, each side by its own generation loop: the mean time of a step after the first token."""
    token_ids = _random_ids(config, setting, batch, prompt)

    def ours() -> float:
        clock = _Clock()
        for token in models[OURS].stream(token_ids, max_new_tokens=new + 1, temperature=0):
            clock.put(token.tolist())
        return (clock.times[-1] - clock.times[0]) / new

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
        return (clock.times[-1] - clock.times[1]) / new  # the first thing put is the prompt

    return {OURS: ours, **{name: lambda model=models[name]: peer(model) for name in PEERS}}  # type: ignore[misc]


def _training_step(name: str, model: Any, config: Any, setting: Setting, batch: int, seq: int) -> Any:
    """A function that takes one training step: forward, loss, backward, fused AdamW; no dropout."""
    token_ids = _random_ids(config, setting, batch, seq + 1)
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
    optimizer = make_optimizer(model, gpt2_124m())
    called = torch.compile(model) if setting.compile else model

    def step() -> None:
        with torch.autocast(torch.device(setting.device).type, torch.bfloat16, enabled=setting.precision == "bfloat16"):
            output = called(inputs)
            loss = next_token_loss(output if name == OURS else output.logits, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _train(models: dict[str, Any], config: Any, setting: Setting, batch: int, seq: int) -> Jobs:
    """One training step; the same loss function and no dropout."""
    steps = {name: _training_step(name, model, config, setting, batch, seq) for name, model in models.items()}

    def job(name: str) -> float:
        start = _now(setting)
        steps[name]()
        return _now(setting) - start

    return {name: lambda name=name: job(name) for name in models}  # type: ignore[misc]


def _train_memory(_: dict[str, Any], config: Any, setting: Setting, batch: int, seq: int) -> Jobs:
    """The most memory that a process takes which does nothing but train, in MiB; on a GPU, of the GPU's."""

    def job(name: str) -> float:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as alone:
            threads = torch.get_num_threads()
            return alone.submit(_peak_of_training, name, config, setting, batch, seq, threads).result()

    return {name: lambda name=name: job(name) for name in (OURS, *PEERS)}  # type: ignore[misc]


def _peak_of_training(name: str, config: Any, setting: Setting, batch: int, seq: int, threads: int) -> float:
    torch.set_num_threads(threads)
    model = contender(name, config).to(setting.device)
    step = _training_step(name, model, config, setting, batch, seq)
    for _ in range(3):
        step()
    if setting.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(setting.device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # Linux; its getrusage would count what the process was before it became this one
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


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


ROWS: dict[str, Callable[[dict[str, Any], Any, Setting], Jobs]] = {
    "prefill 1x512": partial(_prefill, batch=1, seq=512),
    "prefill 8x128": partial(_prefill, batch=8, seq=128),
    "decode 128+64, batch 1": partial(_decode, batch=1, prompt=128, new=64),
    "decode 128+64, batch 8": partial(_decode, batch=8, prompt=128, new=64),
    "train 4x256": partial(_train, batch=4, seq=256),
    "train 4x256, memory": partial(_train_memory, batch=4, seq=256),
    "linear 512 x 768 to 3072": lambda *_: _linear(512, 768, 3072),
    "linear 1 x 768 to 50257": lambda *_: _linear(1, 768, 50257),
}
"""What is measured, by name: batch x sequence, prompt + new tokens, or rows x inputs to outputs."""

ENCODER_ROWS: dict[str, Callable[[dict[str, Any], Any, Setting], Jobs]] = {
    "read 1": partial(_read, batch=1),
    "read 8": partial(_read, batch=8),
}
"""What is measured of a model that does not write: that many whole contexts, or images, at once."""
