"""`train` follows a recipe: tokenise the text, make the model, run in a folder, resume if it was interrupted."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from allformers.checkpoints.hub import read_json
from allformers.inputs.tokenizers import load_tokenizer
from allformers.inspection import summarise
from allformers.models.registry import class_for, load
from allformers.speed import prepare as prepare_model
from allformers.training.data import TOKENIZERS, Tokens, is_prepared, open_tokens, prepare, split
from allformers.training.loop import Trainer
from allformers.training.processes import Processes, process_group
from allformers.training.recipes import Recipe
from allformers.training.runs import Budget, LogEntry, Run, RunError, open_checkpoint, prepare_folder, write_record


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    file: str | Path | None = None,
    resume: bool = False,
    budget: Budget = Budget(),  # noqa: B008  (immutable)
    device: torch.device | str = "cpu",
    parallel: str = "ddp",
    peak_flops: float | None = None,
    tensorboard: bool = False,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[LogEntry]:
    """Train by a recipe in a folder of its own, yielding log entries as they are made.

    Under `torchrun` every process calls this, and the main process writes.

    Args:
        recipe: the model, the text and the hyperparameters.
        folder: the run's folder; see `allformers.training.runs`.
        file: where the recipe's corpus lies, if it would have to be fetched.
        resume: go on from the newest checkpoint in the folder; begin if there is none.
        budget: limits at which to stop early.
        device: the device to train on. With several processes each takes the GPU of its local rank.
        parallel: with several processes, "ddp" (each has the model) or "fsdp" (each has a shard of it).
        peak_flops: floating-point operations that the device can do in a second, for the MFU; looked up or measured if
            None.
        tensorboard: True writes the metrics for TensorBoard too.
        on_progress: called with the bytes done and the bytes in all while the text is prepared.

    Raises:
        RunError: the folder holds a run already (and `resume` is False), or a checkpoint of another recipe or text, or
            one that is damaged; another process trains in the folder; the loss is no longer a number; the disk is full.
        ValueError: the corpus cannot be had or does not fit the recipe.
    """
    folder = Path(folder)
    if not recipe.corpus:
        raise ValueError(
            "this recipe has no corpus of its own: name a text, or a folder that `allformers data prepare` wrote"
        )
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; a run needs a folder")
    with process_group(torch.device(device), parallel) as processes, contextlib.ExitStack() as lock:
        with processes.main_process_first():
            if processes.is_main_process:
                lock.enter_context(prepare_folder(folder))
                if not resume and (folder / "training.json").exists():
                    raise RunError(f"{folder} holds a run already: go on with it (--resume), or choose another folder")
            tokens = _tokens(recipe, folder, file, on_progress)
        run = _set_up(recipe, folder, tokens, processes, budget, peak_flops, tensorboard)
        yield from run.run()
        del run  # release the model before the process group is destroyed


def _set_up(
    recipe: Recipe,
    folder: Path,
    tokens: Tokens,
    processes: Processes,
    budget: Budget,
    peak: float | None,
    tensorboard: bool,
) -> Run:
    """Make a run with its model and text, and restore its checkpoint if there is one."""
    train_tokens, validation_tokens = split(tokens.ids, recipe.validation_fraction)
    if recipe.prompt:
        tokens.tokenizer.encode(recipe.prompt)  # raise now if the prompt cannot be encoded
    if not recipe.init_from:
        padded = math.ceil(tokens.tokenizer.vocab_size / recipe.vocab_multiple) * recipe.vocab_multiple
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=padded))
    elif recipe.model.vocab_size < tokens.tokenizer.vocab_size:
        raise ValueError(
            f"the vocabulary of the text's tokenizer is {tokens.tokenizer.vocab_size}, but that of {recipe.init_from} "
            f"is {recipe.model.vocab_size}: prepare the text with that model's own tokenizer"
        )
    checkpoint = open_checkpoint(folder, recipe, tokens.tokens_sha256)
    model_class = class_for(recipe.model)
    cost = summarise(model_class, dataclasses.replace(recipe.model, context_length=recipe.seq_length))
    peak = peak or peak_rate(processes.device, recipe.precision)
    torch.manual_seed(recipe.seed)
    if checkpoint is not None:
        model = load(checkpoint)
    elif recipe.init_from:
        model = load(recipe.init_from, dtype=torch.float32)
    else:
        model = model_class(recipe.model)
    record = {
        "recipe": dataclasses.asdict(recipe),
        "corpus": {**read_json(_data_folder(recipe, folder) / "data.json")},
        "train_tokens": len(train_tokens),
        "validation_tokens": len(validation_tokens),
        "parameters": cost.parameters,
        "processes": processes.world_size,
        "device": processes.device.type,
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
    }
    if processes.is_main_process:
        write_record(folder, record)
    run = Run(
        folder=folder,
        trainer=Trainer(prepare_model(model, training=True), train_tokens, recipe, processes),
        tokenizer=tokens.tokenizer,
        validation_tokens=validation_tokens,
        record=record,
        budget=budget,
        flops_per_token=3 * cost.flops_per_token,  # each product has two in the backward pass
        peak_flops=peak,
        tensorboard=tensorboard,
    )
    if checkpoint is not None:
        run.resume(checkpoint)
    return run


def _data_folder(recipe: Recipe, folder: Path) -> Path:
    """Return the folder of the tokenised text: where it was prepared before, or in the run's own folder."""
    return Path(recipe.corpus) if is_prepared(recipe.corpus) else folder / "data"


def _tokens(recipe: Recipe, folder: Path, file: str | Path | None, on_progress: Callable[[int, int], object]) -> Tokens:
    """Open the recipe's text as tokens, or prepare it first."""
    place = _data_folder(recipe, folder)
    if is_prepared(place):
        return open_tokens(place)
    if recipe.tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer must be one of {', '.join(TOKENIZERS)}, not {recipe.tokenizer!r}")
    own = load_tokenizer(recipe.init_from, recipe.model.vocab_size) if recipe.init_from else recipe.tokenizer
    return prepare(recipe.corpus, place, own, file=file, on_progress=on_progress)


PEAK_TFLOPS = {
    "A100": {"bfloat16": 312, "float32": 156},
    "H100": {"bfloat16": 989, "float32": 495},
    "H200": {"bfloat16": 989, "float32": 495},
}
"""Peak TFLOPS of GPUs' tensor cores, from NVIDIA's data sheets: dense, SXM form, float32 as TF32."""


def peak_rate(device: torch.device, precision: str) -> float:
    """Return a device's peak floating-point operations in a second, in matrix products of a precision.

    From its data sheet if it is known here, else measured: the best of several products of two 2048 x 2048 matrices.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, rates in PEAK_TFLOPS.items():
            if known in name:
                return rates[precision] * 1e12
    size = 2048
    dtype = getattr(torch, precision)
    x, layer = torch.randn(size, size, device=device, dtype=dtype), nn.Linear(size, size, bias=False)
    layer = prepare_model(layer.to(device=device, dtype=dtype))
    best = math.inf
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            float(layer(x)[0, 0])  # reading a number waits for the device
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
