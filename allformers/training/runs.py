"""A whole training run in a folder: metrics, validation, samples, and checkpoints from which it can go on.

    training.json           the recipe, the corpus, and the result
    metrics.jsonl           a line of JSON for each logged step
    data/                   the text as tokens
    checkpoints/step-.../   a model that loads like any other, and state.safetensors: the rest of the training state
    model.safetensors ...   the trained model, once the recipe is done

A checkpoint is written beside its place and then renamed, so it is either there and whole, or not there. The last two
are kept. The trained model, its tokenizer and the result are written in one act. A run that is killed at any moment
loses the steps since the last checkpoint; one that is resumed from a checkpoint reaches, on a CPU, the same weights to
the bit as one that was never stopped. Only one process at a time trains in a folder.
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

from allformers.checkpoints.atomic import (
    atomic_folder,
    atomic_update,
    atomic_write,
    exclusive,
    finish_update,
    locate,
    remove_drafts,
    remove_folder,
    sha256,
)
from allformers.checkpoints.hub import read_json
from allformers.checkpoints.loading import checkpoint_tensors
from allformers.checkpoints.pretrained import write_pretrained
from allformers.checkpoints.tensors import save_tensors
from allformers.generation.sampling import LogitsError
from allformers.inputs.tokenizers import Tokenizer
from allformers.training.evaluation import evaluate
from allformers.training.loop import Trainer
from allformers.training.recipes import Recipe

MAX_CHECKPOINTS = 2
"""The number of checkpoints of a run that are kept, the newest ones."""

MUTABLE_FIELDS = {
    *("micro_batch_size", "compile", "recompute", "max_validation_tokens", "validate_every", "sample_every"),
    *("sample_tokens", "temperature", "prompt", "log_every", "save_every"),
}
"""Fields of a recipe that may change when a run is resumed: they decide logging, saving, memory, but no weight."""


class RunError(ValueError):
    """Error of a run that cannot begin, resume or save. The message says why, and which checkpoint is intact."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits at which a run stops early; it can be resumed.

    Attributes:
        max_steps: stop after that many steps of the run.
        max_tokens: stop once the run has trained on that many tokens.
        max_minutes: stop that long after this command has begun to train.

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

    def stop_reason(self, steps: int, tokens: int, minutes: float) -> str:
        """Name the limit that has been reached; empty if none."""
        for what, used, limit in (
            ("steps", steps, self.max_steps),
            ("tokens", tokens, self.max_tokens),
            ("minutes", minutes, self.max_minutes),
        ):
            if limit is not None and used >= limit:
                return f"the budget of {limit:,} {what} is spent"
        return ""


class LogEntry(NamedTuple):
    """One line of `metrics.jsonl`, in which fields that are None are left out.

    Attributes:
        step: the number of steps taken so far.
        loss: of the step's batch, before the step, in nats per token.
        learning_rate: of the step.
        gradient_norm: before clipping.
        tokens: trained on since the run began.
        seconds: of training since the run began, without measurements, samples and checkpoints.
        tokens_per_second: since the previous line.
        mfu: model FLOPs utilisation, the share of the devices' peak that the model's matrix products took, if known.
        validation_loss: in nats per token, if it was measured at this step.
        sample: a text that the model generated, if one was due at this step.
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
    """A training run in a folder, ready to start or to resume.

    Attributes:
        folder: the run's folder.
        trainer: the model and its training state.
        tokenizer: decodes samples, and is saved beside the weights.
        validation_tokens: the token ids that the validation loss is measured on; may be empty.
        record: the contents of `training.json`, but for the result.
        budget: limits at which to stop early.
        flops_per_token: of a training step, on average; None for no MFU.
        peak_flops: floating-point operations that the device can do in a second.
        tensorboard: True writes the metrics for TensorBoard too.
        seconds: training time so far.
        stop_reason: why the run ended; empty while it goes on.
    """

    folder: Path
    trainer: Trainer
    tokenizer: Tokenizer
    validation_tokens: Integer[Tensor, "validation_seq"]
    record: Mapping[str, Any]
    budget: Budget = Budget()
    flops_per_token: float | None = None
    peak_flops: float | None = None
    tensorboard: bool = False
    seconds: float = 0.0
    stop_reason: str = ""

    def run(self) -> Iterator[LogEntry]:
        """Train to the end of the recipe or the budget, yielding a log entry at a time; then write the trained model.

        SIGINT and SIGTERM end the run after the step at hand, with a checkpoint.

        Raises:
            RunError: the loss is no longer a number, or something cannot be written. Checkpoints stay as they are.
        """
        trainer, recipe, processes = self.trainer, self.trainer.recipe, self.trainer.processes
        began = time.monotonic()
        saved, last_step, last_seconds = trainer.step, trainer.step, self.seconds
        with _Signals() as signals, self._metrics_writer() as write:
            while trainer.step < recipe.steps and not self.stop_reason:
                clock = time.perf_counter()
                metrics = trainer.train_step()
                step, tokens = metrics.step, metrics.step * recipe.tokens_per_step
                is_last = step == recipe.steps
                validating, sampling, saving, logging = (
                    is_last or (every > 0 and step % every == 0)
                    for every in (recipe.validate_every, recipe.sample_every, recipe.save_every, recipe.log_every)
                )
                if processes.world_size == 1 or validating or sampling or saving or logging:  # an all-reduce takes time
                    minutes = (time.monotonic() - began) / 60
                    reason = signals.received or self.budget.stop_reason(step, tokens, minutes)
                    if processes.sum(bool(reason)) and not is_last:
                        self.stop_reason = reason or "another process was told to stop"
                        validating = sampling = saving = True
                logging = logging or validating or sampling
                if logging or saving:
                    loss = processes.mean(metrics.loss)  # waits for the device, so that the time is that of the work
                    norm = float(metrics.gradient_norm)
                    if not (math.isfinite(loss) and math.isfinite(norm)):
                        raise RunError(
                            f"training diverged: the loss is {loss} and the gradient norm {norm} at step {step}. "
                            f"{self._intact_checkpoint(saved)}; a lower learning_rate or more warmup_steps may help"
                        )
                self.seconds += time.perf_counter() - clock

                if logging:
                    speed = (step - last_step) * recipe.tokens_per_step / max(1e-9, self.seconds - last_seconds)
                    last_step, last_seconds = step, self.seconds
                    entry = LogEntry(
                        step,
                        loss,
                        metrics.learning_rate,
                        norm,
                        tokens,
                        self.seconds,
                        speed,
                        self._mfu(speed),
                        self._validation_loss() if validating and len(self.validation_tokens) > 1 else None,
                        self._sample() if sampling else None,
                    )
                    with self._catch_write_errors(step, saved):
                        write(entry)
                if saving:
                    with self._catch_write_errors(step, saved):
                        self._save()
                    saved = step
                if logging:
                    yield entry
        self.stop_reason = self.stop_reason or "the recipe is done"
        with self._catch_write_errors(trainer.step, saved):
            self._finish()

    def resume(self, checkpoint: Path) -> None:
        """Restore the training state of a checkpoint that `open_checkpoint` has checked; the model has its weights."""
        state = read_json(checkpoint / "state.json")
        self.trainer.restore(int(state["step"]), safetensors.torch.load_file(checkpoint / "state.safetensors"))
        self.seconds = float(state["seconds"])

    def _validation_loss(self) -> float:
        recipe, processes = self.trainer.recipe, self.trainer.processes
        rows = recipe.micro_batch_size or max(1, recipe.batch_size // processes.world_size)
        limit = None if recipe.max_validation_tokens is None else recipe.max_validation_tokens + 1
        with self.trainer.autocast():
            text = self.validation_tokens[:limit]
            try:
                return evaluate(self.trainer.model, text, recipe.seq_length + 1, None, rows, processes).loss
            except LogitsError:  # the next step's loss tells whether the run has diverged
                return math.nan

    def _sample(self) -> str | None:
        """Generate a sample, or say why there is none; None in processes that need not take part."""
        trainer, recipe, processes = self.trainer, self.trainer.recipe, self.trainer.processes
        if not (processes.is_main_process or processes.parallel == "fsdp"):
            return None
        first = self.tokenizer.eos_token_id
        start = self.tokenizer.encode(recipe.prompt) or [int(trainer.tokens[0]) if first is None else first]
        try:
            with processes.unsharded(trainer.model):
                (written,) = trainer.model.generate_batch(  # type: ignore[operator]
                    [start],
                    max_new_tokens=recipe.sample_tokens,
                    temperature=recipe.temperature,
                    seed=recipe.seed,
                    stop_tokens=() if first is None else (first,),
                )
        except LogitsError as error:  # a sample is for looking at: the run goes on
            return f"(no sample: {error})"
        return self.tokenizer.decode(token for token in written.tolist() if token != first)

    def _mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation. Source: Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, appendix B."""
        if self.flops_per_token is None or self.peak_flops is None:
            return None
        return tokens_per_second * self.flops_per_token / (self.peak_flops * self.trainer.processes.world_size)

    def _save(self) -> None:
        """Write a checkpoint. All processes have to call this; the main process writes."""
        trainer = self.trainer
        tensors, state = checkpoint_tensors(trainer.model), trainer.state()  # type: ignore[arg-type]
        if not trainer.processes.is_main_process:
            return
        folder = self.folder / "checkpoints"
        with atomic_folder(folder / f"step-{trainer.step:08d}") as draft:
            write_pretrained(draft, trainer.model.checkpoint_format(), trainer.model.config, tensors)  # type: ignore[operator]
            self.tokenizer.write_files(draft)
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
        for old in find_checkpoints(self.folder)[:-MAX_CHECKPOINTS]:
            remove_folder(old)

    def _finish(self) -> None:
        """Write the result to `training.json`, and the trained model if the recipe is done."""
        trainer = self.trainer
        done = trainer.step == trainer.recipe.steps
        tensors = checkpoint_tensors(trainer.model) if done else {}  # type: ignore[arg-type]
        if not trainer.processes.is_main_process:
            return
        lines = read_metrics(self.folder)
        result = {"stop_reason": self.stop_reason, "step": trainer.step, "seconds": round(self.seconds, 1)}
        measured = [(line["validation_loss"], line["step"]) for line in lines if "validation_loss" in line]
        if measured:
            best, best_step = min(measured)
            result["validation_loss_nats_per_token"] = round(measured[-1][0], 4)
            result |= {"best_validation_loss_nats_per_token": round(best, 4), "best_step": best_step}
        elif lines:
            result["loss_nats_per_token"] = round(lines[-1]["loss"], 4)
        with atomic_update(self.folder) as draft:
            if done:
                write_pretrained(draft, trainer.model.checkpoint_format(), trainer.model.config, tensors)  # type: ignore[operator]
                self.tokenizer.write_files(draft)
            write_record(draft, {**self.record, "result": result})

    @contextlib.contextmanager
    def _metrics_writer(self) -> Iterator[Any]:
        """Yield a function that appends an entry to the metrics; those later than the checkpoint are removed first."""
        if not self.trainer.processes.is_main_process:
            yield lambda entry: None
            return
        path = self.folder / "metrics.jsonl"
        lines = [line for line in read_metrics(self.folder) if line["step"] <= self.trainer.step]
        with atomic_write(path) as draft:
            draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        board = _tensorboard(self.folder, self.trainer.step) if self.tensorboard else None

        def write(entry: LogEntry) -> None:
            line = {name: value for name, value in entry._asdict().items() if value is not None}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            if board is not None:
                for name, value in line.items():
                    if name == "sample":
                        board.add_text(name, str(value), entry.step)
                    elif name != "step":
                        board.add_scalar(name, value, entry.step)

        try:
            yield write
        finally:
            if board is not None:
                board.close()

    @contextlib.contextmanager
    def _catch_write_errors(self, step: int, saved_step: int) -> Iterator[None]:
        """Turn errors of writing into a RunError that says what was written and which checkpoint is intact."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"step {step} could not be written to {self.folder}: {error}. {self._intact_checkpoint(saved_step)}; "
                "repair that, then resume with --resume"
            ) from error

    def _intact_checkpoint(self, saved_step: int) -> str:
        found = find_checkpoints(self.folder)
        return f"The checkpoint of step {saved_step} is intact" if found else "There is no earlier checkpoint"


def find_checkpoints(folder: Path) -> list[Path]:
    """List a run's checkpoints, the oldest first."""
    return sorted((folder / "checkpoints").glob("step-*"))


def open_checkpoint(folder: Path, recipe: Recipe, tokens_sha256: str) -> Path | None:
    """Check the newest checkpoint of a run against the recipe and the text, and return it; None if there is none yet.

    Raises:
        RunError: it is damaged, of another recipe or another text, or was saved by a version with other fields.
    """
    found = find_checkpoints(folder)
    if not found:
        return None
    newest = found[-1]
    way_out = f"remove that folder to go on from {found[-2].name}" if len(found) > 1 else "there is none before it"
    try:
        about = read_json(newest / "state.json")
        files, saved_recipe = dict(about["files"]), dict(about["recipe"])
        fault = _find_damage(newest, files)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"the checkpoint {newest} is damaged: {error}; {way_out}") from error
    if fault:
        raise RunError(f"the checkpoint {newest} is damaged: {fault}; {way_out}")
    saved, asked = _flat(saved_recipe), _flat(json.loads(json.dumps(dataclasses.asdict(recipe))))
    unknown = sorted(saved.keys() - asked.keys())
    if unknown:
        raise RunError(
            f"the run in {folder} was saved with fields that this recipe does not have ({', '.join(unknown)}): resume "
            "it with the model and the version of allformers that began it, or begin again in another folder"
        )
    other = [
        f"{name} was {saved.get(name)!r}, now {asked.get(name)!r}"
        for name in sorted(asked)
        if name not in MUTABLE_FIELDS and saved.get(name) != asked.get(name)
    ]
    if other:
        raise RunError(f"the run in {folder} cannot be resumed with another recipe: {'; '.join(other)}")
    if about.get("tokens_sha256") != tokens_sha256:
        raise RunError(f"the run in {folder} was trained on another text, and cannot be resumed with this one")
    return newest


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a recipe to values by name, those of the model with `model.` before it."""
    model = recipe.get("model") or {}
    return {
        **{name: recipe[name] for name in recipe if name != "model"},
        **{f"model.{key}": model[key] for key in model},
    }


def _find_damage(checkpoint: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the first missing or changed file of a checkpoint; empty if all are intact."""
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
    """Read the result of a run from its `training.json`; empty while the run has not ended.

    Raises:
        CheckpointError: there is no run.
    """
    return dict(read_json(locate(folder, "training.json")).get("result", {}))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`; an unfinished last line is left out.

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


@contextlib.contextmanager
def prepare_folder(folder: Path) -> Iterator[None]:
    """Make a run's folder, clear up what a killed process has left in it, and let no other process train in it.

    Raises:
        RunError: another process trains in it.
    """
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(exclusive(checkpoints))
        except BlockingIOError as owner:
            raise RunError(f"{owner} trains in {folder}: wait until it has ended, or choose another folder") from None
        finish_update(folder)
        remove_drafts(folder)
        remove_drafts(checkpoints)
        yield


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError('TensorBoard is not installed: pip install "allformers[tensorboard]"') from error
    return SummaryWriter(folder / "tensorboard", purge_step=step + 1)


class _Signals:
    """Handlers that note a signal, so that the run can finish its step; a second signal stops it at once."""

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
