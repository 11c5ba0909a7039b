"""The rows of the benchmark: a function for each kind of row that prepares its measurement, and the rows by name."""

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
    COMPILED_PEER,
    OURS,
    PACKED,
    PEERS,
    RECOMPUTING,
    ROOFLINE,
    UNCHECKED,
    Settings,
    compiled_peer,
    contender,
    contenders,
    import_transformers,
    peers_of,
    smallest_preset,
    with_packed,
)
from allformers.benchmark.measure import (
    Measurement,
    TimestampStreamer,
    added_memory,
    flops_of,
    in_own_process,
    peak_memory,
    timed,
    weight_bytes_read,
)
from allformers.generation.decoder import Decoder
from allformers.models.registry import class_for, entry_for
from allformers.nn.shapes import unchecked
from allformers.speed import compile_steps, prepare
from allformers.speed.steps import CompiledSteps
from allformers.training.loop import make_optimizer, next_token_loss, recompute
from allformers.training.recipes import gpt2_124m


def rows_for(config: Any) -> dict[str, "MeasurementFactory"]:
    """The rows for a model: encoders have forward rows, and no rows for decoding and training.

    The rows of scale include the other presets with the same vocabulary.
    """
    if not issubclass(class_for(config), Decoder):
        return ENCODER_ROWS
    others = {size.name: size.config for size in entry_for(config).sizes()}
    return ROWS | {
        f"scale: {name}, 1x128": partial(_extrapolated, other, seq=128)
        for name, other in others.items()
        if other.vocab_size == config.vocab_size
    }


def _random_ids(config: Any, settings: Settings, batch: int, seq: int) -> Tensor:
    ids = torch.randint(config.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(0))
    return ids.to(settings.device)


def _forward(models: dict[str, Any], settings: Settings, inputs: Tensor) -> Measurement:
    """A forward pass with the logits of every position."""
    flops = flops_of(models[OURS], inputs)
    models = with_packed(models, settings)
    if settings.compile:
        models[COMPILED_PEER] = compiled_peer(models)

    def job(model: Any) -> float:
        with torch.inference_mode():
            return timed(settings, model, inputs)

    return Measurement({name: partial(job, model) for name, model in models.items()}, flops=flops)


def _prefill(models: dict[str, Any], config: Any, settings: Settings, batch: int, seq: int) -> Measurement:
    """Prefill: a forward pass over a prompt."""
    return _forward(models, settings, _random_ids(config, settings, batch, seq))


def _encode(models: dict[str, Any], config: Any, settings: Settings, batch: int) -> Measurement:
    """A forward pass of an encoder over whole contexts, or images."""
    inputs = models[OURS].dummy_input(batch, config.context_length, settings.device)
    noise = torch.Generator().manual_seed(0)
    if inputs.is_floating_point():
        inputs = torch.randn(inputs.shape, generator=noise).to(settings.device, getattr(torch, settings.dtype))
    else:
        inputs = torch.randint(config.vocab_size, inputs.shape, generator=noise).to(settings.device)
    return _forward(models, settings, inputs)


def _decode(models: dict[str, Any], config: Any, settings: Settings, batch: int, prompt: int, new: int) -> Measurement:
    """Greedy decoding by each side's own generation loop: the mean time of a step after the first token."""
    token_ids = _random_ids(config, settings, batch, prompt)

    def ours(model: Any) -> float:
        streamer = TimestampStreamer()
        for token in model.stream(token_ids, max_new_tokens=new + 1, temperature=0):
            streamer.put(token.tolist())
        return (streamer.times[-1] - streamer.times[0]) / new

    def peer(model: Any) -> float:
        streamer = TimestampStreamer()
        model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            do_sample=False,
            max_new_tokens=new + 1,
            min_new_tokens=new + 1,
            pad_token_id=0,
            streamer=streamer,
            cache_implementation="static" if "forward" in vars(model) else None,
        )
        return (streamer.times[-1] - streamer.times[1]) / new  # the first thing put is the prompt

    weights = weight_bytes_read(models[OURS])
    models = with_packed(models, settings)
    compiled = compile_steps(copy.copy(models.get(PACKED, models[OURS])))
    steps = compiled.decode_step  # not compiled without a compiler, nor for batches of large models
    if isinstance(steps, CompiledSteps) and (batch == 1 or steps.is_small):
        models = {OURS: models[OURS], COMPILED: compiled, **models}
    if settings.compile:
        models[COMPILED_PEER] = compiled_peer(models, steps=True)
    return Measurement(
        {name: partial(ours if name.startswith(OURS) else peer, model) for name, model in models.items()},
        flops=2 * weights / getattr(torch, settings.dtype).itemsize * batch,
        nbytes=weights,
    )


def _training_step(name: str, model: Any, config: Any, settings: Settings, batch: int, seq: int) -> Any:
    """Build a function that takes one training step: forward, loss, backward, fused AdamW; no dropout."""
    token_ids = _random_ids(config, settings, batch, seq + 1)
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
    if name.startswith(OURS):
        prepare(model, training=True)
    optimizer = make_optimizer(model, gpt2_124m())
    called = torch.compile(model) if settings.compile else model
    device_type = torch.device(settings.device).type

    def step() -> None:
        with torch.autocast(device_type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            output = called(inputs)
            loss = next_token_loss(output.logits if name in PEERS else output, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _train(models: dict[str, Any], config: Any, settings: Settings, batch: int, seq: int) -> Measurement:
    """One training step; the same loss function, no dropout. The backward pass takes twice the FLOPs of the forward."""
    sources = {OURS: OURS, RECOMPUTING: OURS, **{name: name for name in peers_of(config)}}
    copies = {name: copy.deepcopy(models[source]).float() for name, source in sources.items()}
    recompute(copies[RECOMPUTING])
    steps = {name: _training_step(name, model, config, settings, batch, seq) for name, model in copies.items()}
    like_peak = settings.precision == settings.dtype  # the peak is measured in the dtype of the weights
    flops = 3 * flops_of(models[OURS], _random_ids(config, settings, batch, seq)) if like_peak else 0
    return Measurement({name: partial(timed, settings, step) for name, step in steps.items()}, flops=flops)


def _train_memory(_: dict[str, Any], config: Any, settings: Settings, batch: int, seq: int) -> Measurement:
    """The peak memory of a process that only trains."""
    args = (config, settings, batch, seq)
    names = (OURS, RECOMPUTING, *peers_of(config))
    return Measurement({name: partial(in_own_process, _training_peak_memory, name, *args) for name in names}, "MiB")


def _training_peak_memory(name: str, config: Any, settings: Settings, batch: int, seq: int) -> float:
    model = contender(name, config).to(settings.device)
    step = _training_step(name, model, config, settings, batch, seq)
    for _ in range(3):
        step()
    return peak_memory(settings)


def _forward_memory(_: dict[str, Any], config: Any, settings: Settings, batch: int, seq: int) -> Measurement:
    """The peak memory of a forward pass, beyond the model's."""
    args = (config, settings, batch, seq)
    names = (OURS, *peers_of(config))
    return Measurement({name: partial(in_own_process, _forward_added_memory, name, *args) for name in names}, "MiB")


def _forward_added_memory(name: str, config: Any, settings: Settings, batch: int, seq: int) -> float:
    model = contender(name, config).to(settings.device, getattr(torch, settings.dtype))
    with torch.inference_mode():
        model(_random_ids(config, settings, 1, 1))  # whatever is imported at the first use
        return added_memory(settings, lambda: model(_random_ids(config, settings, batch, seq)))


def _load_memory(_: dict[str, Any], config: Any, settings: Settings) -> Measurement:
    """The peak memory of loading a checkpoint; the roofline is the size of the weights."""
    kept = tempfile.TemporaryDirectory()
    ours = contender(OURS, config).to(getattr(torch, settings.dtype))
    ours.save_pretrained(kept.name)
    tiny = contender(OURS, smallest_preset(config))
    tiny.save_pretrained(Path(kept.name) / "tiny")
    weights = sum(one.nbytes for one in {id(one): one for one in ours.parameters()}.values())

    def job(name: str) -> float:
        return in_own_process(_loading_added_memory, name, kept.name, config, settings)

    names = (OURS, *peers_of(config))
    return Measurement({name: partial(job, name) for name in names}, "MiB", fixed=weights / 2**20, folder=kept)


def _loading_added_memory(name: str, folder: str, config: Any, settings: Settings) -> float:
    def load(place: Path) -> Any:
        if name == OURS:
            return prepare(class_for(config).from_pretrained(place))
        peer: Any = getattr(import_transformers(), class_for(config).checkpoint_format().architecture)
        return peer.from_pretrained(place, attn_implementation=PEERS[name], dtype="auto")

    load(Path(folder) / "tiny")  # whatever is imported at the first use

    def load_and_use() -> None:
        model = load(Path(folder))
        with torch.inference_mode():
            model(_random_ids(config, settings, 1, 1))  # weights that lie in a file are read when they are used

    return added_memory(settings, load_and_use)


def _import(_: dict[str, Any], config: Any, settings: Settings) -> Measurement:
    """The time to import a model, beside that of PyTorch alone."""

    def job(module: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return (time.perf_counter() - start) * 1e3

    return Measurement({OURS: partial(job, class_for(config).__module__), "import torch": partial(job, "torch")})


def _traced(model: Any, inputs: Tensor) -> Any:
    """The operators of a forward pass, traced by TorchScript: they run one after the other without Python."""
    with torch.inference_mode(), unchecked(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants, and that TorchScript is deprecated
        return torch.jit.trace(model, (inputs,), check_trace=False)


def _call(_: dict[str, Any], config: Any, settings: Settings, seq: int, calls: int = 100) -> Measurement:
    """Per-call overhead: the smallest model on few tokens, where arithmetic is negligible."""
    config = smallest_preset(config)
    models = contenders(config, settings=dataclasses.replace(settings, dtype="float32"))
    token_ids = _random_ids(config, settings, 1, seq)
    called = {**models, UNCHECKED: models[OURS], ROOFLINE: _traced(models[OURS], token_ids)}
    if settings.compile:
        called[COMPILED] = torch.compile(models[OURS])
        called[COMPILED_PEER] = compiled_peer(models)

    def job(name: str) -> float:
        model = called[name]
        with torch.inference_mode(), unchecked() if name == UNCHECKED else contextlib.nullcontext():
            return timed(settings, lambda: [model(token_ids) for _ in range(calls)]) / calls * 1e3

    return Measurement({name: partial(job, name) for name in called}, "µs")


def _extrapolated(config: Any, _: dict[str, Any], __: Any, settings: Settings, seq: int) -> Measurement:
    """A forward pass of a model that may not fit into memory: extrapolated from one layer and five to all layers.

    Each time is the least of three, since extrapolation multiplies noise by the number of layers.
    """
    few, more, layers = 1, 5, config.num_layers
    models = {
        depth: contenders(dataclasses.replace(config, num_layers=depth), settings=settings) for depth in (few, more)
    }
    token_ids = _random_ids(config, settings, 1, seq)

    def extrapolate(shallow: float, deep: float) -> float:
        return shallow + (deep - shallow) / (more - few) * (layers - few)

    def job(name: str) -> float:
        with torch.inference_mode():
            shallow, deep = (
                min(timed(settings, models[depth][name], token_ids) for _ in range(3)) for depth in (few, more)
            )
        return extrapolate(shallow, deep)

    flops = extrapolate(*(flops_of(models[depth][OURS], token_ids) for depth in (few, more)))
    return Measurement({name: partial(job, name) for name in models[few]}, flops=flops)


def _linear(_: dict[str, Any], config: Any, settings: Settings, rows: int, inputs: int, outputs: int) -> Measurement:
    """One linear layer: ours beside PyTorch's, cycling through enough weight matrices to defeat the CPU cache."""
    place: Any = {"device": settings.device, "dtype": getattr(torch, settings.dtype)}
    x = torch.randn(1, rows, inputs, **place)
    plain = [torch.nn.Linear(inputs, outputs, bias=False, **place) for _ in range(max(2, 2**26 // (inputs * outputs)))]
    layers: dict[str, list[Callable[[Tensor], Tensor]]] = {
        OURS: [prepare(copy.copy(layer)) for layer in plain],
        PACKED: [prepare(copy.copy(layer), "packed") for layer in plain],
        "F.linear": [partial(F.linear, weight=layer.weight) for layer in plain],
    }

    def job(called: list[Callable[[Tensor], Tensor]]) -> float:
        with torch.inference_mode():
            return timed(settings, lambda: [layer(x) for layer in called]) / len(called)

    flops, nbytes = 2 * rows * inputs * outputs, plain[0].weight.nbytes
    return Measurement({name: partial(job, called) for name, called in layers.items()}, flops=flops, nbytes=nbytes)


MeasurementFactory = Callable[[dict[str, Any], Any, Settings], Measurement]

LENGTHS = (128, 256, 512, 1024)

BATCH_SIZES = (1, 2, 4, 8)

ROWS: dict[str, MeasurementFactory] = {
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
    **{f"scale: prefill {batch}x128": partial(_prefill, batch=batch, seq=128) for batch in BATCH_SIZES[1:]},
    **{f"scale: memory of 1x{seq}": partial(_forward_memory, batch=1, seq=seq) for seq in LENGTHS},
}
"""The rows by name: batch x sequence, prompt + new tokens, or rows x inputs to outputs. Those that begin with "scale"
are measured only on request."""

ENCODER_ROWS: dict[str, MeasurementFactory] = {
    "forward 1": partial(_encode, batch=1),
    "forward 8": partial(_encode, batch=8),
}
"""The rows for encoders, by name: a batch of whole contexts, or of images."""
