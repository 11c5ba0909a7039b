"""Timing against the reference: the same weights, the same threads, one process, in turns.

A single time says little on a machine that others use too, so every round times every contender once, one after the
other, and what counts is the ratio within a round. Shape checks are on unless a contender's name says otherwise. Memory
is measured too, each contender in a process of its own.

What the machine can do at best is measured in the same run: how fast it reads memory, and how fast its best kernel
multiplies. The floor of a row is the longer of two times: that of reading every weight once at the one rate, and that
of all multiplications at the other. Nothing that computes the same can take less. Where there is next to nothing to
compute, it is the time of the same operators one after the other, called without Python.
"""

import contextlib
import copy
import dataclasses
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from allformers.checkpoints import checkpoint_tensors, write_config
from allformers.linear import Linear, onednn
from allformers.models import READING_ORDER
from allformers.recipes import gpt2_124m
from allformers.shapes import unchecked
from allformers.speed import CompiledSteps, PackedLinear, compile_steps, pack_weight, prepare, quiet_torchao
from allformers.training.loop import make_optimizer, next_token_loss, recompute

OURS = "allformers"
PACKED = "allformers, packed"
STEPS = "allformers, compiled"
UNCHECKED = "allformers, unchecked"
FLOOR = "floor"
RECOMPUTING = "allformers, recomputing"
PEERS = {"transformers, eager": "eager", "transformers, sdpa": "sdpa"}
COMPILED = "transformers, compiled"

Jobs = dict[str, Callable[[], float]]
"""What each contender does, and how long it then says that it took."""


class Limits(NamedTuple):
    """What the machine can do at best.

    Attributes:
        read: bytes a second, summing up numbers that no cache holds.
        multiply: floating-point operations a second, of the fastest kernel for a linear layer on 512 rows.
    """

    read: float
    multiply: float


class Measurement(NamedTuple):
    """What is to be measured in one row.

    Attributes:
        jobs: for each contender, what it does; `FLOOR` is none, but the least that they could take.
        unit: of what a job returns.
        flops: floating-point operations that it takes; 0 if that sets no limit.
        nbytes: bytes of memory that have to be read at least, likewise.
        fixed: a floor that does not depend on the machine.
    """

    jobs: Jobs
    unit: str = "ms"
    flops: float = 0
    nbytes: float = 0
    fixed: float | None = None

    def floor(self, limits: Limits | None) -> float | None:
        """The least that a job can take on a machine with these limits, if that is known."""
        if self.fixed is not None or limits is None or not (self.flops or self.nbytes):
            return self.fixed
        return max(self.flops / limits.multiply, self.nbytes / limits.read) * 1e3


class Row(NamedTuple):
    """One row of the result.

    Attributes:
        name: what was done.
        unit: ms (for decoding, of one token of every sequence), µs or MiB.
        measured: for each contender, of each round.
        floor: the least that it could be.
    """

    name: str
    unit: str
    measured: dict[str, list[float]]
    floor: float | None = None

    def median(self, contender: str) -> float:
        """What a contender took, the median over rounds."""
        return statistics.median(self.measured[contender])

    def spread(self, contender: str) -> float:
        """Half of how far the rounds lie apart, in parts of the median."""
        times = self.measured[contender]
        return (max(times) - min(times)) / 2 / self.median(contender)

    def ratio(self, contender: str = OURS) -> float:
        """How many times as much as one of ours the most frugal peer takes, the median over rounds; above 1, we win."""
        peers = [times for name, times in self.measured.items() if not name.startswith(OURS)]
        ratios = [min(others) / ours for ours, *others in zip(self.measured[contender], *peers, strict=True)]
        return statistics.median(ratios)

    @property
    def best(self) -> str:
        """Which of ours takes least."""
        return min((name for name in self.measured if name.startswith(OURS)), key=self.median)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the contenders run on and in.

    Attributes:
        device: where.
        dtype: of the weights, except in training, where they are float32.
        precision: of matrix products in training, as in a recipe.
        compile: whether everybody's model is compiled, for training and single calls; and whether transformers' is
            otherwise. Our own steps are always compiled too.
    """

    device: str = "cpu"
    dtype: str = "float32"
    precision: str = "float32"
    compile: bool = False


def contenders(config: Any, seed: int = 0, setting: Setting = Setting()) -> dict[str, Any]:
    """Our model and the reference's variants, all with the same random weights, room for all rows, and no dropout.

    Raises:
        ImportError: transformers is not installed.
    """
    torch.manual_seed(seed)
    ours = contender(OURS, config)
    models: dict[str, Any] = {OURS: ours}
    for name in peers_of(config):
        models[name] = contender(name, config)
        _give_weights(ours, models[name])
    dtype = getattr(torch, setting.dtype)
    return {name: model.to(setting.device, dtype) for name, model in models.items()}


def _give_weights(ours: Any, peer: Any) -> None:
    """Make a peer the same model as ours, by way of a file where it names its weights otherwise than its files do."""
    if not ours.format.from_disk:
        peer.load_state_dict(checkpoint_tensors(ours), strict=False)  # the tied head is not among them
        return
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        peer.load_state_dict(type(peer).from_pretrained(folder).state_dict())


def rows_for(config: Any) -> dict[str, "Maker"]:
    """What can be measured of a model: one that does not write is read with, and there is nothing to decode.

    To what grows with scale belong the other sizes of the same vocabulary.
    """
    if not hasattr(model_of(config), "generate"):
        return ENCODER_ROWS
    others = {preset: make() for preset, make in type(config).presets().items()}
    return ROWS | {
        f"scale: {preset.replace('_', '-')}, 1x128": partial(_size, other, seq=128)
        for preset, other in others.items()
        if other.vocab_size == config.vocab_size
    }


def model_of(config: Any) -> Any:
    """The model that a configuration is for."""
    return next(made for entry in READING_ORDER if (made := entry.load()).format.config_class is type(config))


def peers_of(config: Any) -> list[str]:
    """The reference's variants that there are of a model: not every one can use PyTorch's fused attention.

    Raises:
        ImportError: transformers is not installed.
    """
    peer = getattr(_transformers(), model_of(config).format.architecture)
    return [name for name, kind in PEERS.items() if kind != "sdpa" or peer._supports_sdpa]


def contender(name: str, config: Any) -> Any:
    """One of them, with fresh weights.

    Raises:
        ImportError: it is one of transformers', which is not installed.
    """
    model_class = model_of(config)
    room = {"context_length": max(config.context_length, 1024)} if hasattr(model_class, "generate") else {}
    config = dataclasses.replace(config, dropout=0.0, **room)
    if name.startswith(OURS):
        model = model_class(config).eval()
        if name == RECOMPUTING:
            recompute(model)
        return model
    transformers = _transformers()
    description = write_config(model_class.format, config)
    description |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    reference: Any = transformers.AutoConfig.for_model(**description)
    reference._attn_implementation = PEERS[name]
    peer: Any = getattr(transformers, model_class.format.architecture)(reference)
    return peer.eval()


def _transformers() -> Any:
    """The reference, without what it and the libraries that it imports would say on the side."""
    quiet_torchao()  # which transformers imports where it is installed
    try:
        import transformers
    except ImportError as error:
        raise ImportError('the benchmark needs transformers to compare with: pip install "allformers[test]"') from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def largest_difference(models: dict[str, Any], given: Tensor) -> float:
    """The largest difference between any peer's logits and ours, relative to the largest logit."""
    with torch.inference_mode():
        ours = models[OURS](given)
        peers = [models[name](given).logits for name in models if name in PEERS]
        return max(((peer - ours).abs().max() / ours.abs().max()).item() for peer in peers)


def run(
    config: Any,
    rows: Sequence[str] = (),
    rounds: int = 5,
    setting: Setting = Setting(),
) -> Iterator[Row]:
    """Measure the rows whose names contain one of `rows`, or are one of them, one after the other.

    All but those of scale if none is given.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no row is called so, or there are no rounds.
    """
    there = rows_for(config)
    chosen = {
        name: make
        for name, make in there.items()
        if (
            any(part == name or (part in name and part not in there) for part in rows)
            if rows
            else not name.startswith("scale")
        )
    }
    if not chosen:
        raise ValueError(f"no row is called {' or '.join(rows)}; there are: {', '.join(there)}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    models: dict[str, Any] = {}
    if any(
        any(part in name for part in ("prefill", "decode", "train", "read")) and "memory" not in name for name in chosen
    ):
        models = contenders(config, setting=setting)
    bounds: Limits | None = None
    for name, make in chosen.items():
        measurement = make(models, config, setting)
        if bounds is None and (measurement.flops or measurement.nbytes):
            bounds = limits(setting)
        measured: dict[str, list[float]] = {contender: [] for contender in measurement.jobs}
        once = measurement.unit == "MiB"  # memory is no matter of luck
        for count in range(1 if once else rounds + 1):
            for contender, job in measurement.jobs.items():
                taken = job()
                if count or once:  # the first round of times only warms up
                    measured[contender].append(taken)
        least = measured.pop(FLOOR, None)
        yield Row(name, measurement.unit, measured, statistics.median(least) if least else measurement.floor(bounds))


def limits(setting: Setting = Setting(), rounds: int = 5) -> Limits:
    """Measure what the machine can do at best, now and on as many threads as everybody has."""
    dtype = getattr(torch, setting.dtype)
    numbers = torch.ones(2**27, device=setting.device)
    x = torch.randn(512, 768).to(setting.device, dtype)
    weights = [torch.randn(3072, 768).to(setting.device, dtype) for _ in range(8)]
    kernels: list[Callable[[], object]] = [lambda: [F.linear(x, weight) for weight in weights]]
    packed = [pack_weight(weight) for weight in weights]
    if all(one is not None for one in packed):
        kernels.append(lambda: [onednn(x, one) for one in packed if one is not None])

    def best(job: Callable[[], object]) -> float:
        return min(_timed(setting, job) for _ in range(rounds + 1)) / 1e3

    with torch.inference_mode():
        flops = 2 * x.numel() * 3072 * len(weights)
        return Limits(numbers.nbytes / best(numbers.sum), flops / min(best(kernel) for kernel in kernels))


def flops_of(model: Any, given: Tensor) -> float:
    """The floating-point operations of one forward pass."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(given)
    return counter.get_total_flops()


def _weights_read(model: Any) -> float:
    """Bytes of all weights that a step multiplies by: what is only looked up does not count; 0 if a router chooses."""
    if "experts" in model.config.axes:
        return 0
    looked_up = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    multiplied = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Linear)}
    return sum(one.nbytes for one in model.parameters() if id(one) in multiplied or id(one) not in looked_up)


def _with_packed(models: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """The models, and ours once more, prepared for inference where that changes anything."""
    if setting.device != "cpu":
        return models
    if PACKED not in models:
        shared = {id(one): one for one in models[OURS].parameters()}
        models[PACKED] = prepare(copy.deepcopy(models[OURS], shared))  # kept for the other rows
    return {OURS: models[OURS], PACKED: models[PACKED], **{name: models[name] for name in models if name in PEERS}}


def _random_ids(config: Any, setting: Setting, batch: int, seq: int) -> Tensor:
    ids = torch.randint(config.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(0))
    return ids.to(setting.device)


def _now(setting: Setting) -> float:
    """The time, in milliseconds, when the device has done what it was asked to."""
    if setting.device.startswith("cuda"):
        torch.cuda.synchronize(setting.device)
    return time.perf_counter() * 1e3


def _timed(setting: Setting, job: Callable[..., object], *given: object) -> float:
    """How long something takes, in milliseconds."""
    start = _now(setting)
    job(*given)
    return _now(setting) - start


def _compiled_peer(models: dict[str, Any], steps: bool = False) -> Any:
    """The reference's best variant, compiled; its steps too, which its own loop takes."""
    best = [model for name, model in models.items() if name in PEERS][-1]
    if not steps:
        return torch.compile(best)
    best = copy.copy(best)
    best.forward = torch.compile(best.forward)
    return best


def _pass(models: dict[str, Any], setting: Setting, given: Tensor) -> Measurement:
    """A forward pass, logits of every position."""
    work = flops_of(models[OURS], given)
    models = _with_packed(models, setting)
    if setting.compile:
        models[COMPILED] = _compiled_peer(models)

    def job(model: Any) -> float:
        with torch.inference_mode():
            return _timed(setting, model, given)

    return Measurement({name: partial(job, model) for name, model in models.items()}, flops=work)


def _prefill(models: dict[str, Any], config: Any, setting: Setting, batch: int, seq: int) -> Measurement:
    """A forward pass over a prompt."""
    return _pass(models, setting, _random_ids(config, setting, batch, seq))


def _read(models: dict[str, Any], config: Any, setting: Setting, batch: int) -> Measurement:
    """A forward pass of an encoder over all that it can read at once: a whole context, or images."""
    given = models[OURS].example(batch, config.context_length, setting.device)
    noise = torch.Generator().manual_seed(0)
    if given.is_floating_point():
        given = torch.randn(given.shape, generator=noise).to(setting.device, getattr(torch, setting.dtype))
    else:
        given = torch.randint(config.vocab_size, given.shape, generator=noise).to(setting.device)
    return _pass(models, setting, given)


class _Clock:
    """A streamer, as the reference calls what it hands each new token to, that only notes when it comes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, token: object) -> None:
        self.times.append(time.perf_counter() * 1e3)

    def end(self) -> None:
        pass


def _decode(models: dict[str, Any], config: Any, setting: Setting, batch: int, prompt: int, new: int) -> Measurement:
    """Greedy decoding, each side by its own generation loop: the mean time of a step after the first token."""
    token_ids = _random_ids(config, setting, batch, prompt)

    def ours(model: Any) -> float:
        clock = _Clock()
        for token in model.stream(token_ids, max_new_tokens=new + 1, temperature=0):
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
            cache_implementation="static" if "forward" in vars(model) else None,
        )
        return (clock.times[-1] - clock.times[1]) / new  # the first thing put is the prompt

    weights = _weights_read(models[OURS])
    models = _with_packed(models, setting)
    compiled = compile_steps(copy.copy(models.get(PACKED, models[OURS])))
    steps = compiled.step  # as they were where there is no compiler; and of several texts, in some models
    if isinstance(steps, CompiledSteps) and (batch == 1 or steps.is_small):
        models = {OURS: models[OURS], STEPS: compiled, **models}
    if setting.compile:
        models[COMPILED] = _compiled_peer(models, steps=True)
    return Measurement(
        {name: partial(ours if name.startswith(OURS) else peer, model) for name, model in models.items()},
        flops=2 * weights / getattr(torch, setting.dtype).itemsize * batch,
        nbytes=weights,
    )


def _training_step(name: str, model: Any, config: Any, setting: Setting, batch: int, seq: int) -> Any:
    """A function that takes one training step: forward, loss, backward, fused AdamW; no dropout."""
    token_ids = _random_ids(config, setting, batch, seq + 1)
    inputs, targets = token_ids[:, :-1], token_ids[:, 1:]
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
    return Measurement({name: partial(_timed, setting, step) for name, step in steps.items()}, flops=work)


def _alone(function: Callable[..., float], *given: Any) -> float:
    """What a function returns in a process that does nothing else."""
    spawn = multiprocessing.get_context("spawn")
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=torch.set_num_threads, initargs=threads) as alone:
        return alone.submit(function, *given).result()


def _peak(setting: Setting) -> float:
    """The most memory, in MiB, that this process has taken; on a GPU, of the GPU's."""
    if setting.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(setting.device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # Linux; its getrusage would count what the process was before it became this one
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _growth(setting: Setting, job: Callable[[], object]) -> float:
    """The memory, in MiB, that something takes beside what this process holds; an earlier peak would hide it."""
    if setting.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(setting.device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak(setting)
    job()
    return _peak(setting) - before


def _train_memory(_: dict[str, Any], config: Any, setting: Setting, batch: int, seq: int) -> Measurement:
    """The most memory that a process takes which does nothing but train."""
    given = (config, setting, batch, seq)
    names = (OURS, RECOMPUTING, *peers_of(config))
    return Measurement({name: partial(_alone, _peak_of_training, name, *given) for name in names}, "MiB")


def _peak_of_training(name: str, config: Any, setting: Setting, batch: int, seq: int) -> float:
    model = contender(name, config).to(setting.device)
    step = _training_step(name, model, config, setting, batch, seq)
    for _ in range(3):
        step()
    return _peak(setting)


def _pass_memory(_: dict[str, Any], config: Any, setting: Setting, batch: int, seq: int) -> Measurement:
    """The memory that a forward pass takes beside the model."""
    given = (config, setting, batch, seq)
    names = (OURS, *peers_of(config))
    return Measurement({name: partial(_alone, _growth_of_pass, name, *given) for name in names}, "MiB")


def _growth_of_pass(name: str, config: Any, setting: Setting, batch: int, seq: int) -> float:
    model = contender(name, config).to(setting.device, getattr(torch, setting.dtype))
    with torch.inference_mode():
        model(_random_ids(config, setting, 1, 1))  # whatever is imported at the first use
        return _growth(setting, lambda: model(_random_ids(config, setting, batch, seq)))


def _load_memory(_: dict[str, Any], config: Any, setting: Setting) -> Measurement:
    """The memory that loading a checkpoint takes."""
    kept = tempfile.TemporaryDirectory()
    ours = contender(OURS, config).to(getattr(torch, setting.dtype))
    ours.save_pretrained(kept.name)
    tiny = contender(OURS, _smallest(config))
    tiny.save_pretrained(Path(kept.name) / "tiny")
    weights = sum(one.nbytes for one in {id(one): one for one in ours.parameters()}.values())

    def job(name: str) -> float:
        return _alone(_growth_of_loading, name, kept.name, config, setting)

    names = (OURS, *peers_of(config))
    return Measurement({name: partial(job, name) for name in names}, "MiB", fixed=weights / 2**20)


def _growth_of_loading(name: str, folder: str, config: Any, setting: Setting) -> float:
    def load(place: Path) -> Any:
        if name == OURS:
            return model_of(config).from_pretrained(place)
        peer: Any = getattr(_transformers(), model_of(config).format.architecture)
        return peer.from_pretrained(place, attn_implementation=PEERS[name], dtype="auto")

    load(Path(folder) / "tiny")  # whatever is imported at the first use

    def load_and_use() -> None:
        model = load(Path(folder))
        with torch.inference_mode():
            model(_random_ids(config, setting, 1, 1))  # weights that lie in a file are read when they are used

    return _growth(setting, load_and_use)


def _import(_: dict[str, Any], config: Any, setting: Setting) -> Measurement:
    """Importing a model, beside importing PyTorch alone."""

    def job(module: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return (time.perf_counter() - start) * 1e3

    return Measurement({OURS: partial(job, model_of(config).__module__), "import torch": partial(job, "torch")})


def _smallest(config: Any) -> Any:
    """The smallest preset of the same model."""
    return next(iter(type(config).presets().values()))()


def _without_python(model: Any, given: Tensor) -> Any:
    """The operators of one pass, recorded, to be called one after the other by nothing that takes time itself."""
    with torch.inference_mode(), unchecked(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants, and that PyTorch has newer ways to record
        return torch.jit.trace(model, (given,), check_trace=False)


def _call(_: dict[str, Any], config: Any, setting: Setting, seq: int, calls: int = 100) -> Measurement:
    """One call of the smallest model, in which there is little to compute: what everything around it takes."""
    config = _smallest(config)
    models = contenders(config, setting=dataclasses.replace(setting, dtype="float32"))
    token_ids = _random_ids(config, setting, 1, seq)
    called = {**models, UNCHECKED: models[OURS], FLOOR: _without_python(models[OURS], token_ids)}
    if setting.compile:
        called[STEPS] = torch.compile(models[OURS])
        called[COMPILED] = _compiled_peer(models)

    def job(name: str) -> float:
        model = called[name]
        with torch.inference_mode(), unchecked() if name == UNCHECKED else contextlib.nullcontext():
            return _timed(setting, lambda: [model(token_ids) for _ in range(calls)]) / calls * 1e3

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
                min(_timed(setting, models[depth][name], token_ids) for _ in range(3)) for depth in (few, more)
            )
        return drawn_out(shallow, deep)

    work = drawn_out(*(flops_of(models[depth][OURS], token_ids) for depth in (few, more)))
    return Measurement({name: partial(job, name) for name in models[few]}, flops=work)


def _linear(_: dict[str, Any], config: Any, setting: Setting, rows: int, inputs: int, outputs: int) -> Measurement:
    """One linear layer on as many rows: ours beside PyTorch's, on so many weights in turn that no cache holds them."""
    place: Any = {"device": setting.device, "dtype": getattr(torch, setting.dtype)}
    x = torch.randn(1, rows, inputs, **place)
    plain = [Linear(inputs, outputs, bias=False, **place) for _ in range(max(2, 2**26 // (inputs * outputs)))]
    layers: dict[str, list[Callable[[Tensor], Tensor]]] = {
        OURS: [*plain],
        PACKED: [PackedLinear(layer) for layer in plain],
        "F.linear": [partial(F.linear, weight=layer.weight) for layer in plain],
    }

    def job(called: list[Callable[[Tensor], Tensor]]) -> float:
        with torch.inference_mode():
            return _timed(setting, lambda: [layer(x) for layer in called]) / len(called)

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
