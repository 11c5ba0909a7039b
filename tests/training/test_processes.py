"""Many processes: as many as there are, they learn what one learns from the same batches."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from allformers.models.gpt2.gpt2 import GPT2
from allformers.training.loop import Trainer
from allformers.training.processes import SINGLE_PROCESS, Processes, process_group
from allformers.training.runs import find_checkpoints, read_metrics, read_result

together = pytest.mark.xdist_group("processes")  # they share a run, and would take the machine from each other
RECIPE = ["--steps", "20", "--batch-size", "8", "--seq-length", "16", "--validation-fraction", "0.4"]
RECIPE += ["--validate-every", "10", "--sample-every", "10", "--sample-tokens", "9", "--save-every", "10"]
RECIPE += ["--log-every", "1", "--warmup-steps", "5"]


def launch(folder: Path, processes: int, *options: str) -> "subprocess.CompletedProcess[str]":
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "allformers", "train", "hello-world"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, str(folder), *RECIPE, *options], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert launch(folder / "run", 1).returncode == 0
    return folder / "run"


def figures(folder: Path, name: str) -> dict[int, Any]:
    return {line["step"]: line[name] for line in read_metrics(folder) if name in line}


def agree(folder: Path, expected: Path) -> None:
    for name in ("loss", "validation_loss", "gradient_norm"):
        found, wanted = figures(folder, name), figures(expected, name)
        assert found.keys() == wanted.keys()
        for step, value in wanted.items():
            assert found[step] == pytest.approx(value, rel=1e-5 if "loss" in name else 1e-4), (name, step)
    assert figures(folder, "sample") == figures(expected, "sample")
    models = GPT2.from_pretrained(folder), GPT2.from_pretrained(expected)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert (one - other).abs().max() < 1e-4


@together
@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, []),
        (4, ["--micro-batch-size", "1"]),
        (2, ["--parallel", "fsdp"]),
        (2, ["--parallel", "fsdp", "--log-every", "7"]),
    ],
    ids=["ddp-2", "ddp-4", "fsdp-2", "fsdp-2-quiet"],
)
def test_processes_learn_what_one_learns(alone: Path, tmp_path: Path, processes: int, options: list[str]) -> None:
    result = launch(tmp_path / "run", processes, *options)
    assert result.returncode == 0, result.stderr
    if "--log-every" in options:
        assert list(figures(tmp_path / "run", "loss")) == [7, 10, 14, 20]
        return
    assert len(figures(tmp_path / "run", "loss")) == 20
    assert result.stderr.count("write with it") == 1  # one speaks for all
    agree(tmp_path / "run", alone)


@together
@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("fsdp", "alone"), ("ddp", "fsdp")])
def test_a_run_goes_on_with_another_number_of_processes(alone: Path, tmp_path: Path, first: str, then: str) -> None:
    for parallel, options in ((first, ["--max-steps", "13"]), (then, ["--resume"])):
        how = [] if parallel == "alone" else ["--parallel", parallel]
        result = launch(tmp_path / "run", 1 if parallel == "alone" else 2, *how, *options)
        assert result.returncode == 0, result.stderr
    assert find_checkpoints(tmp_path / "run")[-1].name == "step-00000020"
    lines = figures(tmp_path / "run", "loss")
    assert list(lines) == list(range(1, 21))
    for step, loss in figures(alone, "loss").items():
        assert lines[step] == pytest.approx(loss, rel=1e-5), step


@together
@pytest.mark.slow
def test_what_goes_wrong_is_said_once_and_nobody_waits_for_ever(alone: Path, tmp_path: Path) -> None:
    result = launch(alone, 2)
    assert result.returncode != 0
    assert result.stderr.count("holds a run already") == 1
    result = launch(tmp_path / "run", 3)
    assert result.returncode != 0
    assert sum("8 sequences" in line and "3 processes" in line for line in result.stderr.splitlines()) == 1
    assert read_result(alone)["step"] == 20


def test_alone_nothing_is_exchanged() -> None:
    assert SINGLE_PROCESS.is_main_process
    assert SINGLE_PROCESS.sum(2.5) == SINGLE_PROCESS.mean(torch.tensor(2.5)) == 2.5
    assert SINGLE_PROCESS.gather("one") == ["one"]
    with process_group(torch.device("cpu")) as processes:
        assert (processes.rank, processes.world_size) == (0, 1)
    with (
        pytest.raises(ValueError, match=r"parallel .*'magic'"),
        process_group(torch.device("cpu"), "magic"),
    ):
        pass


def test_a_batch_that_does_not_divide_is_refused() -> None:
    from allformers.training.recipes import hello_world

    recipe = hello_world()
    with pytest.raises(ValueError, match=r"1 sequences .* 2 processes"):
        Trainer(GPT2(recipe.model), torch.zeros(200, dtype=torch.long), recipe, Processes(rank=0, world_size=2))
