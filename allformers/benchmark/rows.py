"""What can be measured, row by row: a maker for each kind of row, and the names of all."""

import contextlib
import copy
import dataclasses
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from allformers.benchmark.contenders import (
    COMPILED,
    FLOOR,
    OURS,
    PACKED,
    PEERS,
    RECOMPUTING,
    STEPS,
    UNCHECKED,
    Setting,
    compiled_peer,
    contender,
    contenders,
    import_transformers,
    model_of,
    peers_of,
    smallest,
    with_packed,
)
from allformers.benchmark.measure import Clock, Measurement, alone, flops_of, growth, peak, timed, weights_read
from allformers.generation.decoder import Decoder
from allformers.models.registry import entry_for
from allformers.nn.shapes import unchecked
from allformers.speed import compile_steps, prepare
from allformers.speed.steps import CompiledSteps
from allformers.training.loop import make_optimizer, next_token_loss, recompute
from allformers.training.recipes import gpt2_124m


def rows_for(config: Any) -> dict[str, "Maker"]:
    """What can be measured of a model: one that does not write is read with, and there is nothing to decode.

    To what grows with scale belong the other sizes of the same vocabulary.
    """
    if not issubclass(model_of(config), Decoder):
        return ENCODER_ROWS
    others = {size.name: size.config for size in entry_for(config).sizes()}
    return ROWS | {
        f"scale: {name}, 1x128": partial(_size, other, seq=128)
        for name, other in others.items()
        if other.vocab_size == config.vocab_size
    }


def _random_ids(config: Any, setting: Setting, batch: int, seq: int) -> Tensor:
    ids = torch.randint(config.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(0))
    return ids.to(setting.device)


def _pass(models: dict[str, Any], setting: Setting, given: Tensor) -> Measurement:
    """A forward pass, logits of every position."""
    work = flops_of(models[OURS], given)
    models = with_packed(models, setting)
    if setting.compile:
        models[COMPILED] = compiled_peer(models)

    def job(model: Any) -> float:
        with torch.inference_mode():
            return timed(setting, model, given)

    return Measurement({name: partial(job, model) for name, model in models.items()}, flops=work)


def _prefill(models: dict[str, Any], config: Any, setting: Setting, batch: int, seq: int) -> Measurement:
    """A forward pass over a prompt."""
    return _pass(models, setting, _random_ids(config, setting, batch, seq))


def _read(models: dict[str, Any], config: Any, setting: Setting, batch: int) -> Measurement:
    """A forward pass of an encoder over all that it can read at once: a whole context, or images."""
    given = models[OURS].dummy_input(batch, config.context_length, setting.device)
    noise = torch.Generator().manual_seed(0)
    if given.is_floating_point():
        given = torch.randn(given.shape, generator=noise).to(setting.device, getattr(torch, setting.dtype))
    else:
        given = torch.randint(config.vocab_size, given.shape, generator=noise).to(setting.device)
    return _pass(models, setting, given)


def _decode(models: dict[str, Any], config: Any, setting: Setting, batch: int, prompt: int, new: int) -> Measurement:
    """Greedy decoding, each side by its own generation loop: the mean time of a step after the first token."""
    token_ids = _random_ids(config, setting, batch, prompt)

    def ours(model: Any) -> float:
        clock = Clock()
        for token in model.stream(token_ids, max_new_tokens=new + 1, temperature=0):
            clock.put(token.tolist())
        return (clock.times[-1] - clock.times[0]) / new

    def peer(model: Any) -> float:
        clock = Clock()
        model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            do_sample=False,
            max_new_tokens=new + 1,
            min_new_tokens=new + 1,
            pad_token_id=0,
            streamer=clock,
            cache_implementation="static" if "forward" in vars(model) else None,
        )
        return (clock.times[-1] - clock.times[1]) / new  # the first thing put is the prompt

    weights = weights_read(models[OURS])
    models = with_packed(models, setting)
    compiled = compile_steps(copy.copy(models.get(PACKED, models[OURS])))
    steps = compiled.decode_step  # as they were where there is no compiler; and of several texts, in some models
    if isinstance(steps, CompiledSteps) and (batch == 1 or steps.is_small):
        models = {OURS: models[OURS], STEPS: compiled, **models}
    if setting.compile:
        models[COMPILED] = compiled_peer(models, steps=True)
    return Measurement(
        {name: partial(ours if name.startswith(OURS) else peer, model) for name, model in models.items()},
        flops=2 * weights / getattr(torch, setting.dtype).itemsize * batch,
        nbytes=weights,
    )


def _training_step(name: str, model: Any, config: Any, setting: Setting, batch: int, seq: int) -> Any:
    """A function that takes one training step: forward, loss, backward, fused AdamW; no dropout."""
    token_ids = _random_ids(config, setting, batch, seq + 1)
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
    if name.startswith(OURS):
        prepare(model, training=True)
    optimizer = make_optimizer(model, gpt2_124m())
    called = torch.compile(model) if setting.compile else model

    def step() -> None:
        with torch.autocast(torch.device(setting.device).type, torch.bfloat16, enabled=setting.precision == "bfloat16"):
            output = called(inputs)
            loss = next_token_loss(output.logits if name in PEERS else output, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _train(models: dict[str, Any], config: Any, setting: Setting, batch: int, seq: int) -> Measurement:
    """One training step; the same loss function and no dropout. Backwards takes twice the work of forwards."""
    sources = {OURS: OURS, RECOMPUTING: OURS, **{name: name for name in peers_of(config)}}
    copies = {name: copy.deepcopy(models[source]).float() for name, source in sources.items()}
    recompute(copies[RECOMPUTING])
    steps = {name: _training_step(name, model, config, setting, batch, seq) for name, model in copies.items()}
    like_limits = setting.precision == setting.dtype
    work = 3 * flops_of(models[OURS], _random_ids(config, setting, batch, seq)) if like_limits else 0
    return Measurement({name: partial(timed, setting, step) for name, step in steps.items()}, flops=work)


def _train_memory(_: dict[str, Any], config: Any, setting: Setting, batch: int, seq: int) -> Measurement:
    """The most memory that a process takes which does nothing but train."""
    given = (config, setting, batch, seq)
    names = (OURS, RECOMPUTING, *peers_of(config))
    return Measurement({name: partial(alone, _peak_of_training, name, *given) for name in names}, "MiB")


def _peak_of_training(name: str, config: Any, setting: Setting, batch: int, seq: int) -> float:
    model = contender(name, config).to(setting.device)
    step = _training_step(name, model, config, setting, batch, seq)
    for _ in range(3):
        step()
    return peak(setting)


def _pass_memory(_: dict[str, Any], config: Any, setting: Setting, batch: int, seq: int) -> Measurement:
    """The memory that a forward pass takes beside the model."""
    given = (config, setting, batch, seq)
    names = (OURS, *peers_of(config))
    return Measurement({name: partial(alone, _growth_of_pass, name, *given) for name in names}, "MiB")


def _growth_of_pass(name: str, config: Any, setting: Setting, batch: int, seq: int) -> float:
    model = contender(name, config).to(setting.device, getattr(torch, setting.dtype))
    with torch.inference_mode():
        model(_random_ids(config, setting, 1, 1))  # whatever is imported at the first use
        return growth(setting, lambda: model(_random_ids(config, setting, batch, seq)))


def _load_memory(_: dict[str, Any], config: Any, setting: Setting) -> Measurement:
    """The memory that loading a checkpoint takes."""
    kept = tempfile.TemporaryDirectory()
    ours = contender(OURS, config).to(getattr(torch, setting.dtype))
    ours.save_pretrained(kept.name)
    tiny = contender(OURS, smallest(config))
    tiny.save_pretrained(Path(kept.name) / "tiny")
    weights = sum(one.nbytes for one in {id(one): one for one in ours.parameters()}.values())

    def job(name: str) -> float:
        return alone(_growth_of_loading, name, kept.name, config, setting)

    names = (OURS, *peers_of(config))
    return Measurement({name: partial(job, name) for name in names}, "MiB", fixed=weights / 2**20, folder=kept)


def _growth_of_loading(name: str, folder: str, config: Any, setting: Setting) -> float:
    def load(place: Path) -> Any:
        if name == OURS:
            return prepare(model_of(config).from_pretrained(place))
        peer: Any = getattr(import_transformers(), model_of(config).checkpoint_format().architecture)
        return peer.from_pretrained(place, attn_implementation=PEERS[name], dtype="auto")

    load(Path(folder) / "tiny")  # whatever is imported at the first use

    def load_and_use() -> None:
        model = load(Path(folder))
        with torch.inference_mode():
            model(_random_ids(config, setting, 1, 1))  # weights that lie in a file are read when they are used

    return growth(setting, load_and_use)


def _import(_: dict[str, Any], config: Any, setting: Setting) -> Measurement:
    """Importing a model, beside importing PyTorch alone."""

    def job(module: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return (time.perf_counter() - start) * 1e3

    return Measurement({OURS: partial(job, model_of(config).__module__), "import torch": partial(job, "torch")})


def _without_python(model: Any, given: Tensor) -> Any:
    """The operators of one pass, recorded, to be called one after the other by nothing that takes time itself."""
    with torch.inference_mode(), unchecked(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants, and that PyTorch has newer ways to record
        return torch.jit.trace(model, (given,), check_trace=False)


def _call(_: dict[str, Any], config: Any, setting: Setting, seq: int, calls: int = 100) -> Measurement:
    """One call of the smallest model, in which there is little to compute: what everything around it takes."""
    config = smallest(config)
    models = contenders(config, setting=dataclasses.replace(setting, dtype="float32"))
    token_ids = _random_ids(config, setting, 1, seq)
    called = {**models, UNCHECKED: models[OURS], FLOOR: _without_python(models[OURS], token_ids)}
    if setting.compile:
        called[STEPS] = torch.compile(models[OURS])
        called[COMPILED] = compiled_peer(models)

    def job(name: str) -> float:
        model = called[name]
        with torch.inference_mode(), unchecked() if name == UNCHECKED else contextlib.nullcontext():
            return timed(setting, lambda: [model(token_ids) for _ in range(calls)]) / calls * 1e3

    return Measurement({name: partial(job, name) for name in called}, "µs")


def _size(config: Any, _: dict[str, Any], __: Any, setting: Setting, seq: int) -> Measurement:
    """A forward pass of a model that may be too large to hold: from one and five of its layers, drawn out to all.

    Each is the least of three times: what is drawn out is a difference, in which luck would count many times over.
    """
    few, more, layers = 1, 5, config.num_layers
    models = {
        depth: contenders(dataclasses.replace(config, num_layers=depth), setting=setting) for depth in (few, more)
    }
    token_ids = _random_ids(config, setting, 1, seq)

    def drawn_out(shallow: float, deep: float) -> float:
        return shallow + (deep - shallow) / (more - few) * (layers - few)

    def job(name: str) -> float:
        with torch.inference_mode():
            shallow, deep = (
                min(timed(setting, models[depth][name], token_ids) for _ in range(3)) for depth in (few, more)
            )
        return drawn_out(shallow, deep)

    work = drawn_out(*(flops_of(models[depth][OURS], token_ids) for depth in (few, more)))
    return Measurement({name: partial(job, name) for name in models[few]}, flops=work)


def _linear(_: dict[str, Any], config: Any, setting: Setting, rows: int, inputs: int, outputs: int) -> Measurement:
    """One linear layer on as many rows: ours beside PyTorch's, on so many weights in turn that no cache holds them."""
    place: Any = {"device": setting.device, "dtype": getattr(torch, setting.dtype)}
    x = torch.randn(1, rows, inputs, **place)
    plain = [torch.nn.Linear(inputs, outputs, bias=False, **place) for _ in range(max(2, 2**26 // (inputs * outputs)))]
    layers: dict[str, list[Callable[[Tensor], Tensor]]] = {
        OURS: [prepare(copy.copy(layer)) for layer in plain],
        PACKED: [prepare(copy.copy(layer), "packed") for layer in plain],
        "F.linear": [partial(F.linear, weight=layer.weight) for layer in plain],
    }

    def job(called: list[Callable[[Tensor], Tensor]]) -> float:
        with torch.inference_mode():
            return timed(setting, lambda: [layer(x) for layer in called]) / len(called)

    flops, nbytes = 2 * rows * inputs * outputs, plain[0].weight.nbytes
    return Measurement({name: partial(job, called) for name, called in layers.items()}, flops=flops, nbytes=nbytes)


Maker = Callable[[dict[str, Any], Any, Setting], Measurement]

LENGTHS = (128, 256, 512, 1024)

BATCHES = (1, 2, 4, 8)

ROWS: dict[str, Maker] = {
    "prefill 1x512": partial(_prefill, batch=1, seq=512),
    "prefill 8x128": partial(_prefill, batch=8, seq=128),
    "decode 128+64, batch 1": partial(_decode, batch=1, prompt=128, new=64),
    "decode 128+64, batch 8": partial(_decode, batch=8, prompt=128, new=64),
    "train 4x256": partial(_train, batch=4, seq=256),
    "train 4x256, memory": partial(_train_memory, batch=4, seq=256),
    "load, memory": _load_memory,
    "import": _import,
    "call of the smallest, 1x16": partial(_call, seq=16),
    **{f"linear {rows} x 768 to 3072": partial(_linear, rows=rows, inputs=768, outputs=3072) for rows in (1, 8, 512)},
    "linear 1 x 768 to 50257": partial(_linear, rows=1, inputs=768, outputs=50257),
    **{f"scale: prefill 1x{seq}": partial(_prefill, batch=1, seq=seq) for seq in LENGTHS},
    **{f"scale: prefill {batch}x128": partial(_prefill, batch=batch, seq=128) for batch in BATCHES[1:]},
    **{f"scale: memory of 1x{seq}": partial(_pass_memory, batch=1, seq=seq) for seq in LENGTHS},
}
"""What is measured, by name: batch x sequence, prompt + new tokens, or rows x inputs to outputs. What begins with
"scale" is measured only if it is asked for."""

ENCODER_ROWS: dict[str, Maker] = {
    "read 1": partial(_read, batch=1),
    "read 8": partial(_read, batch=8),
}
"""What is measured of a model that does not write: that many whole contexts, or images, at once."""
