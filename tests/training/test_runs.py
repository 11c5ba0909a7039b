"""Runs: what is left at any moment is enough to go on, to the same bits, and nothing wrong is taken for right."""

import contextlib
import dataclasses
import errno
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.atomic import sha256
from allformers.generation.sampling import LogitsError
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.training import data, recipes
from allformers.training.recipes import Recipe
from allformers.training.runs import Budget, LogEntry, RunError, find_checkpoints, read_metrics, read_result
from allformers.training.train import peak_rate, train
from conftest import perturb

MODEL = GPT2Config(
    vocab_size=24, context_length=16, embedding_dim=16, num_layers=2, num_heads=2, mlp_dim=64, dropout=0.1
)


def make_recipe(**changes: Any) -> Recipe:
    """A run of 12 steps in which everything happens, dropout and validation too."""
    settings: dict[str, Any] = {
        "model": MODEL,
        "tokenizer": "characters",
        "steps": 12,
        "batch_size": 4,
        "seq_length": 8,
        "warmup_steps": 3,
        "learning_rate": 1e-2,
        "final_learning_rate": 1e-3,
        "validation_fraction": 0.3,
        "validate_every": 4,
        "sample_every": 6,
        "sample_tokens": 5,
        "save_every": 5,
    }
    return dataclasses.replace(recipes.hello_world(), **{"log_every": 1, **settings, **changes})


def few_of(moments: range) -> list[Any]:
    """Moments of which every fourth is for every day, and the others are slow."""
    return [pytest.param(at, marks=pytest.mark.slow if place % 4 else ()) for place, at in enumerate(moments)]


def follow(folder: Path, recipe: Recipe | None = None, **options: Any) -> list[LogEntry]:
    return list(train(recipe or make_recipe(), folder, peak_flops=1e9, **options))


def follow_and(folder: Path, step: int, act: Callable[[], object], recipe: Recipe | None = None) -> None:
    """Follow a recipe, and do something when a step has been reported."""
    for entry in train(recipe or make_recipe(), folder, peak_flops=1e9):
        if entry.step == step:
            act()


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in find_checkpoints(folder)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    follow(folder)
    return folder


def test_a_run_leaves_a_model_its_metrics_and_its_last_checkpoints(straight: Path) -> None:
    lines = read_metrics(straight)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "validation_loss" in line] == [4, 8, 12]
    assert [line["step"] for line in lines if "sample" in line] == [6, 12]
    assert all(line["sample"].startswith("H") and len(line["sample"]) == 6 for line in lines if "sample" in line)
    assert lines[-1]["tokens"] == 12 * 4 * 8
    assert all(line["tokens_per_second"] > 0 and line["mfu"] > 0 for line in lines)
    assert steps(straight) == [10, 12]
    result = read_result(straight)
    assert result["step"] == 12
    assert result["stop_reason"] == "the recipe is done"
    assert result["validation_loss_nats_per_token"] == round(lines[-1]["validation_loss"], 4)
    model = GPT2.from_pretrained(straight)
    assert model.config == MODEL
    last = GPT2.from_pretrained(find_checkpoints(straight)[-1])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), last.parameters(), strict=True))


def test_the_peak_is_measured_as_a_rate_that_can_be() -> None:
    assert 1e8 < peak_rate(torch.device("cpu"), "float32") < 1e15


def test_mfu_is_the_share_of_the_peak_that_went_into_matrix_products(straight: Path) -> None:
    # By hand, forward: 2 for each weight of a matrix, and 2 products of heads * head_dim numbers for each pair of 8
    # positions; backward twice that.
    matrices = 2 * (3 * 16 * 16 + 16 * 16 + 2 * 16 * 64) + 24 * 16
    flops = 3 * (2 * matrices + 2 * 2 * 2 * 16 * 8)
    line = read_metrics(straight)[-1]
    assert line["mfu"] == pytest.approx(line["tokens_per_second"] * flops / 1e9)


@pytest.mark.parametrize("at", [1, 4, 5, 11])
def test_a_resumed_run_reaches_the_same_bits(tmp_path: Path, straight: Path, at: int) -> None:
    entries = follow(tmp_path, budget=Budget(max_steps=at))
    assert entries[-1].step == at
    assert not (tmp_path / "model.safetensors").exists()
    assert read_result(tmp_path)["stop_reason"] == f"the budget of {at} steps is spent"
    more = follow(tmp_path, resume=True)
    assert [entry.step for entry in more] == list(range(at + 1, 13))
    assert sha256(tmp_path / "model.safetensors") == sha256(straight / "model.safetensors")
    untimed = [
        [{k: v for k, v in line.items() if k not in {"seconds", "tokens_per_second", "mfu"}} for line in lines]
        for lines in (read_metrics(tmp_path), read_metrics(straight))
    ]
    without_extra = [{k: v for k, v in line.items() if k not in {"validation_loss", "sample"}} for line in untimed[0]]
    expected = [{k: v for k, v in line.items() if k not in {"validation_loss", "sample"}} for line in untimed[1]]
    assert without_extra == expected
    assert untimed[0][at:] == untimed[1][at:]


def test_watching_a_run_more_closely_changes_nothing(tmp_path: Path, straight: Path) -> None:
    follow(tmp_path, make_recipe(validate_every=1, sample_every=1, save_every=1, log_every=3, temperature=1.0))
    assert sha256(tmp_path / "model.safetensors") == sha256(straight / "model.safetensors")


def start(folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "allformers", "train", "hello-world", str(folder), "--dropout", "0.1"]
    command += ["--save-every", "7", "--log-every", "1", "--sample-every", "0", "--steps", "120", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.slow  # several processes, that are killed
def test_killed_at_random_steps_it_reaches_the_same_bits(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    reached, process = 0, None
    for _ in range(2):
        target = reached + random.SystemRandom().randint(8, 50)
        process = start(tmp_path / "killed", "--resume")
        metrics = tmp_path / "killed" / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= target):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(RunError, match=rf"\b{process.pid}\b.*{tmp_path / 'killed'}\b"):
            follow(tmp_path / "killed", resume=True)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        lines = metrics.read_bytes().count(b"\n")
        checkpoints = steps(tmp_path / "killed")
        reached = checkpoints[-1] if checkpoints else 0
        assert reached >= lines - 7 - 1, (reached, lines)  # no more is lost than since the last checkpoint
        assert lines < 120, "it ended before it was killed: more steps are needed"
    process = start(tmp_path / "killed", "--resume")
    assert process.communicate()[1] is not None
    assert process.returncode == 0
    whole.communicate()
    assert whole.returncode == 0
    assert sha256(tmp_path / "killed" / "model.safetensors") == sha256(tmp_path / "whole" / "model.safetensors")
    assert [line["step"] for line in read_metrics(tmp_path / "killed")] == list(range(1, 121))
    assert not list(tmp_path.rglob(".*.draft"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_ends(tmp_path: Path, straight: Path, number: signal.Signals) -> None:
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    seen = []
    for entry in train(make_recipe(), tmp_path, peak_flops=1e9):
        seen.append(entry.step)
        if entry.step == 3:
            os.kill(os.getpid(), number)
    assert seen == [1, 2, 3, 4]
    assert steps(tmp_path) == [4]
    assert read_result(tmp_path)["stop_reason"] == f"{number.name} was received"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    follow(tmp_path, resume=True)
    assert sha256(tmp_path / "model.safetensors") == sha256(straight / "model.safetensors")


@pytest.mark.parametrize(
    ("budget", "last"),
    [(Budget(max_steps=5), 5), (Budget(max_tokens=100), 4), (Budget(max_minutes=1e-9), 1), (Budget(), 12)],
)
def test_a_budget_ends_a_run_early(tmp_path: Path, budget: Budget, last: int) -> None:
    assert follow(tmp_path, budget=budget)[-1].step == last
    assert steps(tmp_path)[-1] == last


def test_only_one_process_at_a_time_trains_in_a_folder(tmp_path: Path, straight: Path) -> None:
    run = train(make_recipe(), tmp_path, peak_flops=1e9)
    next(run)
    for resume in (True, False):
        with pytest.raises(RunError, match=rf"\b{os.getpid()}\b.*{tmp_path}\b"):
            follow(tmp_path, resume=resume)
    list(run)
    assert sha256(tmp_path / "model.safetensors") == sha256(straight / "model.safetensors")
    follow(tmp_path, resume=True)
    assert not list(tmp_path.rglob(".*"))


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_minutes .*\b0"):
        Budget(max_minutes=0)


# -- Checkpoints that cannot be used -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    follow(folder, budget=Budget(max_steps=11))
    assert steps(folder) == [10, 11]
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A run that has stopped after step 11, with checkpoints of steps 10 and 11."""
    return shutil.copytree(stopped_once, tmp_path / "stopped")


def test_a_run_is_not_overwritten(stopped: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        follow(stopped)
    assert steps(stopped) == [10, 11]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.02}, "learning_rate was 0.01, now 0.02"),
        ({"steps": 13, "seed": 1}, "seed was 0, now 1; steps was 12, now 13"),
        ({"model": dataclasses.replace(MODEL, num_heads=4)}, r"model\.num_heads was 2, now 4"),
        ({"corpus": "python-docs"}, "corpus was 'hello-world', now 'python-docs'"),
    ],
)
def test_another_recipe_is_refused_by_what_differs(stopped: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        follow(stopped, make_recipe(**changes), resume=True)
    follow(stopped, resume=True)


@pytest.mark.parametrize(("new", "old"), [("init_from", "start"), ("max_validation_tokens", "validation_tokens")])
def test_a_run_saved_with_old_names_is_refused_by_these(stopped: Path, new: str, old: str) -> None:
    path = find_checkpoints(stopped)[-1] / "state.json"
    path.write_text(path.read_text().replace(f'"{new}"', f'"{old}"'))
    with pytest.raises(RunError, match=rf"\b{old}\b"):
        follow(stopped, resume=True)
    assert [line["step"] for line in read_metrics(stopped)] == list(range(1, 12))


def test_what_does_not_shape_the_weights_may_change(stopped: Path, straight: Path) -> None:
    follow(stopped, make_recipe(validate_every=1, prompt="I am", save_every=1), resume=True)
    assert sha256(stopped / "model.safetensors") == sha256(straight / "model.safetensors")


def test_another_text_is_refused(stopped: Path) -> None:
    shutil.rmtree(stopped / "data")
    text = stopped / "other.txt"
    text.write_text("Hello, world? I am a transformer, and this is the one sentence that I know by heart!!")
    data.prepare(str(text), stopped / "data", "characters")
    with pytest.raises(RunError, match=r"model\.vocab_size|text"):
        follow(stopped, resume=True)


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("harm", ["truncated", "changed", "removed"])
def test_a_damaged_checkpoint_is_named_and_the_earlier_one_is_intact(
    stopped: Path, straight: Path, file: str, harm: str
) -> None:
    path = find_checkpoints(stopped)[-1] / file
    content = path.read_bytes()
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(content[:-10] if harm == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunError, match=r"step-00000011.*step-00000010") as e:
        follow(stopped, resume=True)
    assert file in str(e.value)
    shutil.rmtree(find_checkpoints(stopped)[-1])
    follow(stopped, resume=True)
    assert sha256(stopped / "model.safetensors") == sha256(straight / "model.safetensors")


def test_a_checkpoint_without_its_description_is_damaged(stopped: Path) -> None:
    (find_checkpoints(stopped)[-1] / "state.json").write_text("{")
    with pytest.raises(RunError, match=r"step-00000011.*state\.json"):
        follow(stopped, resume=True)


def test_a_finished_run_has_nothing_left_to_do(straight: Path) -> None:
    before = sha256(straight / "model.safetensors")
    assert follow(straight, resume=True) == []
    assert sha256(straight / "model.safetensors") == before
    assert read_result(straight)["stop_reason"] == "the recipe is done"


def test_resume_begins_where_there_is_nothing(tmp_path: Path, straight: Path) -> None:
    follow(tmp_path / "new", resume=True)
    assert sha256(tmp_path / "new" / "model.safetensors") == sha256(straight / "model.safetensors")


# -- When the disk or the numbers give out -----------------------------------------------------------------------------


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The operating system refuses to let any file grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_when_the_disk_refuses_the_earlier_checkpoint_is_intact(tmp_path: Path, straight: Path) -> None:
    message = r"step 10\b.*step 5\b"
    with contextlib.ExitStack() as limits, pytest.raises(RunError, match=message):
        follow_and(tmp_path, 9, lambda: limits.enter_context(files_no_larger_than(20_000)))
    assert steps(tmp_path) == [5]
    assert not list(tmp_path.rglob(".*"))
    follow(tmp_path, resume=True)
    assert sha256(tmp_path / "model.safetensors") == sha256(straight / "model.safetensors")


@pytest.mark.parametrize("at", few_of(range(12)))
def test_a_disk_that_is_full_at_any_moment_leaves_a_run_that_can_go_on(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    calls = 0

    def refuse(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **options)

        return call

    def fill() -> None:
        for name in ("fsync", "replace"):
            patch.setattr(os, name, refuse(getattr(os, name)))

    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"step 10\b"):
        follow_and(tmp_path, 9, fill)
    assert steps(tmp_path) in ([5], [5, 10])
    assert not list(tmp_path.rglob(".*"))
    follow(tmp_path, resume=True)
    assert sha256(tmp_path / "model.safetensors") == sha256(straight / "model.safetensors")


def die_at(at: int, folder: Path, recipe: Recipe) -> None:
    """Train, and be killed at that call to the disk, counted from the third checkpoint's first."""
    calls = 0

    def die(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    def arm() -> None:
        for name in ("fsync", "replace", "rmdir"):
            setattr(os, name, die(getattr(os, name)))

    follow_and(folder, 8, arm, recipe)


@pytest.fixture(scope="module")
def forking() -> Any:
    """Forks a process in which nothing has been computed: PyTorch cannot train in a fork of one that has threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hypothesis", "pytest", "torch", "allformers.training.train"])
    return context


@pytest.mark.slow
@pytest.mark.parametrize("at", range(0, 42, 4))
def test_killed_at_any_moment_of_saving_it_can_go_on(tmp_path: Path, straight: Path, forking: Any, at: int) -> None:
    """From the first byte of the third checkpoint to the last move of the trained model's files."""
    recipe = make_recipe(save_every=3)
    child = forking.Process(target=die_at, args=(at, tmp_path, recipe))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert steps(tmp_path)[-1] in (6, 9, 12)
    follow(tmp_path, recipe, resume=True)
    assert sha256(tmp_path / "model.safetensors") == sha256(straight / "model.safetensors")
    assert not list(tmp_path.rglob(".*"))


def test_a_run_that_diverges_stops_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    wild = make_recipe(learning_rate=1e30, warmup_steps=0, clip_norm=1e30, save_every=1)
    with pytest.raises(RunError, match=r"step 2\b.*step 1\b"):
        follow(tmp_path, wild)
    assert steps(tmp_path) == [1]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_a_sample_that_cannot_be_drawn_is_said_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(*_: object, **__: object) -> None:
        raise LogitsError("the logits are not finite: nan")

    monkeypatch.setattr(GPT2, "generate_batch", overflow)
    monkeypatch.setattr("allformers.training.runs.evaluate", overflow)
    log = follow(tmp_path / "run", make_recipe(sample_every=2, validate_every=2))
    assert log[-1].step == make_recipe().steps
    assert "not finite" in (log[-1].sample or "")
    assert log[-1].validation_loss is not None
    assert math.isnan(log[-1].validation_loss)


@pytest.mark.parametrize("temperature", [1e-40, 1e-300])
def test_a_tiny_temperature_does_not_end_a_run(tmp_path: Path, temperature: float) -> None:
    log = follow(tmp_path / "run", make_recipe(temperature=temperature, steps=1, sample_every=1))
    assert log[-1].sample
    assert "not finite" not in log[-1].sample


def test_an_unfinished_last_line_of_metrics_is_left_out_and_any_other_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl.*line 2"):
        read_metrics(tmp_path)
    assert read_metrics(tmp_path / "nowhere") == []


# -- Other ways to begin -----------------------------------------------------------------------------------------------


def test_a_run_can_start_from_a_checkpoint(tmp_path: Path) -> None:
    """Fine-tuning: the first loss is the checkpoint's own, and the tokenizer is its tokenizer."""
    start = recipes.init_from_checkpoint(recipes.bundled(), "bundled")
    recipe = dataclasses.replace(start, corpus="hello-world", steps=2, batch_size=2, seq_length=30, sample_tokens=3)
    entries = follow(tmp_path, recipe)
    assert entries[0].loss < 4  # a fresh model starts at ln(256) = 5.5
    assert GPT2.from_pretrained(tmp_path).config == GPT2Config.bundled()


def test_a_text_with_more_kinds_of_tokens_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    perturb(small := GPT2(MODEL))
    small.save_pretrained(tmp_path / "small")
    data.prepare("hello-world", tmp_path / "bytes", "bytes")
    recipe = recipes.init_from_checkpoint(make_recipe(), str(tmp_path / "small"))
    with pytest.raises(ValueError, match=r"\b256\b.*\b24\b"):
        follow(tmp_path / "run", dataclasses.replace(recipe, corpus=str(tmp_path / "bytes")))
    assert json.loads((tmp_path / "bytes" / "data.json").read_text())["tokens"] == 84


def test_prepared_data_is_used_where_it_lies_with_its_own_tokenizer(tmp_path: Path) -> None:
    data.prepare("hello-world", tmp_path / "tokens", "bytes")
    follow(tmp_path / "run", make_recipe(corpus=str(tmp_path / "tokens")))
    assert not (tmp_path / "run" / "data").exists()
    assert GPT2.from_pretrained(tmp_path / "run").config.vocab_size == 256


def test_the_vocabulary_is_padded_to_a_round_number(tmp_path: Path) -> None:
    follow(tmp_path, make_recipe(vocab_multiple=64, steps=1))
    assert GPT2.from_pretrained(tmp_path).config.vocab_size == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": ""}, "corpus"),
        ({"tokenizer": "runes"}, "tokenizer .*'runes'"),
        ({"prompt": "Zürich"}, "ü"),
        ({"init_from": "./nowhere"}, "./nowhere"),
        ({"validation_fraction": 0.95}, r"\b4 tokens.*\b8\b"),
    ],
)
def test_what_cannot_work_is_said_before_training(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        follow(tmp_path, make_recipe(**changes))


def test_a_file_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"\bfile\b"):
        follow(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_a_run_has_no_result(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"training\.json"):
        read_result(tmp_path)


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    entries = follow(tmp_path, tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [round(event.value, 5) for event in events.Scalars("loss")] == [round(entry.loss, 5) for entry in entries]
    assert len(events.Scalars("validation_loss")) == 3


def test_without_tensorboard_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RunError, match=r"allformers\[tensorboard\]"):
        follow(tmp_path, tensorboard=True)


@pytest.mark.network  # it fetches its text, and then learns for minutes
def test_shakespeare_reaches_the_published_loss(tmp_path: Path) -> None:
    follow(tmp_path, dataclasses.replace(recipes.shakespeare_char(), sample_every=0))
    loss = read_result(tmp_path)["validation_loss_nats_per_token"]
    print(f"\nshakespeare-char: validation loss {loss}")
    assert loss == pytest.approx(1.76, abs=0.02)  # what the recipe's docstring says
    assert loss <= 1.88  # what nanoGPT publishes
