"""A whole training run in a folder: metrics, validation, samples, and checkpoints from which it can go on.

    training.json           what was trained, on what, and what came of it
    metrics.jsonl           a line of JSON for each logged step
    data/                   the text as tokens
    checkpoints/step-.../   a model that loads like any other, and state.safetensors: all else that the run needs
    model.safetensors ...   the trained model, once the recipe is done

A checkpoint is written beside its place and then renamed, so it is either there and whole, or not there. The last two
are kept. To be killed at any moment costs the steps since the last one; a run that goes on from a checkpoint reaches,
on a processor, the same weights to the bit as one that was never stopped.
"""

import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from jaxtyping import Integer
from safetensors import SafetensorError
from torch import Tensor

from allformers.checkpoints.atomic import atomic_folder, atomic_write, remove_drafts, remove_folder, sha256
from allformers.checkpoints.hub import read_json
from allformers.checkpoints.loading import checkpoint_tensors
from allformers.checkpoints.pretrained import write_pretrained
from allformers.checkpoints.tensors import save_tensors
from allformers.inputs.tokenizers import Tokenizer
from allformers.training.evaluation import evaluate
from allformers.training.loop import Trainer
from allformers.training.recipes import Recipe

KEPT = 2
"""How many checkpoints of a run are kept."""

FREE = {
    *("micro_batch_size", "compile", "recompute", "validation_tokens", "validate_every", "sample_every"),
    *("sample_tokens", "temperature", "prompt", "log_every", "save_every"),
}
"""What of a recipe may change when a run goes on: it decides how the run is watched, or how much memory it takes."""


class RunError(ValueError):
    """A run cannot begin, go on or be saved. The message says why, and what is still there."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop early; a run that stopped so can be resumed.

    Attributes:
        max_steps: stop after that many steps of the run.
        max_tokens: stop once the run has learned from that many tokens.
        max_minutes: stop when so much time has passed since this command began training.

    Raises:
        ValueError: a limit is not above 0.
    """

    max_steps: int | None = None
    max_tokens: int | None = None
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} must be above 0, not {limit}")

    def spent(self, steps: int, tokens: int, minutes: float) -> str:
        """Which limit has been reached; empty if none."""
        for what, used, limit in (
            ("steps", steps, self.max_steps),
            ("tokens", tokens, self.max_tokens),
            ("minutes", minutes, self.max_minutes),
        ):
            if limit is not None and used >= limit:
                return f"the budget of {limit:,} {what} is spent"
        return ""


class Report(NamedTuple):
    """One line of `metrics.jsonl`, where what is None is left out.

    Attributes:
        step: how many steps have been taken.
        loss: of the step's batch, in nats a token, before the step.
        learning_rate: of the step.
        gradient_norm: before clipping.
        tokens: learned from since the run began.
        seconds: of training since the run began, without measurements, samples and checkpoints.
        tokens_per_second: since the line before.
        mfu: the share of the devices' arithmetic that went into the model's matrix products, if their limit is known.
        validation_loss: nats a token on the text kept apart, if it was measured at this step.
        sample: what the model wrote, if it was asked to at this step.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    tokens_per_second: float
    mfu: float | None = None
    validation_loss: float | None = None
    sample: str | None = None


@dataclass
class Run:
    """A run in a folder, ready to go.

    Attributes:
        folder: where everything is kept.
        trainer: what learns.
        tokenizer: to write samples, and beside the weights.
        measure: the text to measure on; may be empty.
        record: what `training.json` says at the end, beside the result.
        budget: when to stop early.
        flops_per_token: of a training step, on average; None if not to be estimated.
        peak_flops: what the device can do in a second.
        tensorboard: whether to write the metrics for TensorBoard too.
        seconds: of training so far.
        stopped: why the run ended; empty while it has not.
    """

    folder: Path
    trainer: Trainer
    tokenizer: Tokenizer
    measure: Integer[Tensor, "validation_seq"]
    record: Mapping[str, Any]
    budget: Budget = Budget()
    flops_per_token: float | None = None
    peak_flops: float | None = None
    tensorboard: bool = False
    seconds: float = 0.0
    stopped: str = ""

    def go(self) -> Iterator[Report]:
        """Train to the end of the recipe or of the budget, a report at a time; then write the trained model.

        SIGINT and SIGTERM end the run after the step at hand, with a checkpoint.

        Raises:
            RunError: the loss is no longer a number, or something cannot be written. Checkpoints stay as they are.
        """
        trainer, recipe, processes = self.trainer, self.trainer.recipe, self.trainer.processes
        began = time.monotonic()
        saved, last_step, last_seconds = trainer.step, trainer.step, self.seconds
        with _Signals() as signals, self._metrics() as write:
            while trainer.step < recipe.steps and not self.stopped:
                clock = time.perf_counter()
                progress = trainer.advance()
                step, tokens = progress.step, progress.step * recipe.tokens_per_step
                is_last = step == recipe.steps
                measuring, sampling, saving, logging = (
                    is_last or (every > 0 and step % every == 0)
                    for every in (recipe.validate_every, recipe.sample_every, recipe.save_every, recipe.log_every)
                )
                if processes.count == 1 or measuring or sampling or saving or logging:  # agreeing takes time
                    minutes = (time.monotonic() - began) / 60
                    reason = signals.received or self.budget.spent(step, tokens, minutes)
                    if processes.sum(bool(reason)) and not is_last:
                        self.stopped = reason or "another process was told to stop"
                        measuring = sampling = saving = True
                logging = logging or measuring or sampling
                if logging or saving:
                    loss = processes.mean(progress.loss)  # waits for the device, so that the time is that of the work
                    norm = float(progress.gradient_norm)
                    if not (math.isfinite(loss) and math.isfinite(norm)):
                        raise RunError(
                            f"the loss is {loss} and its gradient {norm} long at step {step}: the run has come apart. "
                            f"{self._whats_left(saved)}; a lower learning_rate or a longer warm-up may hold it together"
                        )
                self.seconds += time.perf_counter() - clock

                if logging:
                    speed = (step - last_step) * recipe.tokens_per_step / max(1e-9, self.seconds - last_seconds)
                    last_step, last_seconds = step, self.seconds
                    report = Report(
                        step,
                        loss,
                        progress.learning_rate,
                        norm,
                        tokens,
                        self.seconds,
                        speed,
                        self._mfu(speed),
                        self._validation_loss() if measuring and len(self.measure) > 1 else None,
                        self._sample() if sampling else None,
                    )
                    with self._disk(step, saved):
                        write(report)
                if saving:
                    with self._disk(step, saved):
                        self._save()
                    saved = step
                if logging:
                    yield report
        self.stopped = self.stopped or "the recipe is done"
        with self._disk(trainer.step, saved):
            self._finish()

    def resume(self, checkpoint: Path) -> None:
        """Go back to a checkpoint that `open_checkpoint` has found to be whole; the model has its weights already."""
        state = read_json(checkpoint / "state.json")
        self.trainer.restore(int(state["step"]), safetensors.torch.load_file(checkpoint / "state.safetensors"))
        self.seconds = float(state["seconds"])

    def _validation_loss(self) -> float:
        recipe, processes = self.trainer.recipe, self.trainer.processes
        rows = recipe.micro_batch_size or max(1, recipe.batch_size // processes.count)
        limit = len(self.measure) if recipe.validation_tokens is None else recipe.validation_tokens + 1
        with self.trainer.autocast():
            text = self.measure[:limit]
            return evaluate(self.trainer.model, text, recipe.seq_length + 1, None, rows, processes).loss

    def _sample(self) -> str | None:
        """What the model writes now; None in processes that have no need to know."""
        trainer, recipe, processes = self.trainer, self.trainer.recipe, self.trainer.processes
        if not (processes.is_first or processes.parallel == "fsdp"):
            return None
        first = self.tokenizer.eos_token_id
        start = self.tokenizer.encode(recipe.prompt) or [int(trainer.tokens[0]) if first is None else first]
        with processes.gathered(trainer.model):
            (written,) = trainer.model.generate_batch(  # type: ignore[operator]
                [start],
                max_new_tokens=recipe.sample_tokens,
                temperature=recipe.temperature,
                seed=recipe.seed,
                stop_tokens=() if first is None else (first,),
            )
        known = (token for token in written.tolist() if token != first and token < self.tokenizer.vocab_size)
        return self.tokenizer.decode(known)

    def _mfu(self, tokens_per_second: float) -> float | None:
        """Source: Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, appendix B."""
        if self.flops_per_token is None or self.peak_flops is None:
            return None
        return tokens_per_second * self.flops_per_token / (self.peak_flops * self.trainer.processes.count)

    def _save(self) -> None:
        """Write a checkpoint. All processes have to call this; the first writes."""
        trainer = self.trainer
        tensors, state = checkpoint_tensors(trainer.model), trainer.state()  # type: ignore[arg-type]
        if not trainer.processes.is_first:
            return
        folder = self.folder / "checkpoints"
        with atomic_folder(folder / f"step-{trainer.step:08d}") as draft:
            write_pretrained(draft, trainer.model.checkpoint_format(), trainer.model.config, tensors)  # type: ignore[operator]
            self.tokenizer.save(draft)
            save_tensors(state, draft / "state.safetensors")
            about = {
                "step": trainer.step,
                "seconds": self.seconds,
                "recipe": dataclasses.asdict(trainer.recipe),
                "tokens_sha256": self.record["corpus"]["tokens_sha256"],
                "files": {
                    file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in draft.iterdir()
                },
            }
            (draft / "state.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for old in find_checkpoints(self.folder)[:-KEPT]:
            remove_folder(old)

    def _finish(self) -> None:
        """Write what came of it; the trained model too, if the recipe was followed to its end."""
        trainer = self.trainer
        done = trainer.step == trainer.recipe.steps
        tensors = checkpoint_tensors(trainer.model) if done else {}  # type: ignore[arg-type]
        if not trainer.processes.is_first:
            return
        if done:
            write_pretrained(self.folder, trainer.model.checkpoint_format(), trainer.model.config, tensors)  # type: ignore[operator]
            self.tokenizer.save(self.folder)
        lines = read_metrics(self.folder)
        result = {"ended": self.stopped, "step": trainer.step, "seconds": round(self.seconds, 1)}
        measured = [(line["validation_loss"], line["step"]) for line in lines if "validation_loss" in line]
        if measured:
            best, best_step = min(measured)
            result["validation_loss_nats_per_token"] = round(measured[-1][0], 4)
            result |= {"best_validation_loss_nats_per_token": round(best, 4), "best_step": best_step}
        elif lines:
            result["loss_nats_per_token"] = round(lines[-1]["loss"], 4)
        write_record(self.folder, {**self.record, "result": result})

    @contextlib.contextmanager
    def _metrics(self) -> Iterator[Any]:
        """A function that appends a report to the metrics; what was written after the checkpoint is cut off first."""
        if not self.trainer.processes.is_first:
            yield lambda report: None
            return
        path = self.folder / "metrics.jsonl"
        lines = [line for line in read_metrics(self.folder) if line["step"] <= self.trainer.step]
        with atomic_write(path) as draft:
            draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        board = _tensorboard(self.folder, self.trainer.step) if self.tensorboard else None

        def write(report: Report) -> None:
            line = {name: value for name, value in report._asdict().items() if value is not None}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            if board is not None:
                for name, value in line.items():
                    if name == "sample":
                        board.add_text(name, str(value), report.step)
                    elif name != "step":
                        board.add_scalar(name, value, report.step)

        try:
            yield write
        finally:
            if board is not None:
                board.close()

    @contextlib.contextmanager
    def _disk(self, step: int, saved_step: int) -> Iterator[None]:
        """Say what was being written, and what there still is, when the disk refuses."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"step {step} could not be written to {self.folder}: {error}. {self._whats_left(saved_step)}; "
                "mend that, and go on with --resume"
            ) from error

    def _whats_left(self, saved_step: int) -> str:
        found = find_checkpoints(self.folder)
        return f"The checkpoint of step {saved_step} is intact" if found else "There is no earlier checkpoint"


def find_checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the oldest first."""
    return sorted((folder / "checkpoints").glob("step-*"))


def open_checkpoint(folder: Path, recipe: Recipe, tokens_sha256: str) -> Path | None:
    """The newest checkpoint of a run, whole and of this recipe and this text; None if it has none yet.

    Raises:
        RunError: it is damaged, or of another recipe or another text.
    """
    found = find_checkpoints(folder)
    if not found:
        return None
    newest = found[-1]
    way_out = f"remove that folder to go on from {found[-2].name}" if len(found) > 1 else "there is none before it"
    try:
        about = read_json(newest / "state.json")
        files, saved_recipe = dict(about["files"]), dict(about["recipe"])
        fault = _damage(newest, files)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"the checkpoint {newest} is damaged: {error}; {way_out}") from error
    if fault:
        raise RunError(f"the checkpoint {newest} is damaged: {fault}; {way_out}")
    saved, asked = _flat(saved_recipe), _flat(json.loads(json.dumps(dataclasses.asdict(recipe))))
    other = [
        f"{name} was {saved.get(name)!r}, now {asked.get(name)!r}"
        for name in sorted(saved.keys() | asked.keys())
        if name not in FREE and saved.get(name) != asked.get(name)
    ]
    if other:
        raise RunError(f"the run in {folder} cannot go on with another recipe: {'; '.join(other)}")
    if about.get("tokens_sha256") != tokens_sha256:
        raise RunError(f"the run in {folder} has learned from another text, and cannot go on with this one")
    return newest


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values by name, the model's among them."""
    model = recipe.get("model") or {}
    return {
        **{name: recipe[name] for name in recipe if name != "model"},
        **{f"model.{key}": model[key] for key in model},
    }


def _damage(checkpoint: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """What is wrong with a checkpoint's files; empty if nothing is."""
    for name, expected in files.items():
        path = checkpoint / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            return f"{name} has {size:,} bytes, expected {expected['bytes']:,}" if size is not None else f"no {name}"
        if sha256(path) != expected["sha256"]:
            return f"the contents of {name} have changed"
    return ""


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a run's `training.json`."""
    with atomic_write(folder / "training.json") as draft:
        draft.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_result(folder: Path) -> dict[str, Any]:
    """What came of a run.

    Empty while it has not ended.

    Raises:
        CheckpointError: there is no run.
    """
    return dict(read_json(folder / "training.json").get("result", {}))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a last line that was not finished is left out.

    Raises:
        RunError: a line is not a JSON object with a step.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append({"step": json.loads(line)["step"], **json.loads(line)})
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise RunError(f"{path}, line {number}, is not one of a run's metrics") from error
    return found


def prepare_folder(folder: Path) -> None:
    """Make a run's folder, and clear away what a process that was killed has left there."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    remove_drafts(folder)
    remove_drafts(folder / "checkpoints")


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError('TensorBoard is not installed: pip install "allformers[tensorboard]"') from error
    return SummaryWriter(folder / "tensorboard", purge_step=step + 1)


class _Signals:
    """Notes that the run was asked to stop, so that it can finish its step; asked twice, it stops at once."""

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.received = f"{signal.Signals(number).name} was received"
        signal.signal(number, self._before[number])
