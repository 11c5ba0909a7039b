"""The command as a person types it: what it prints, where, and how it refuses what makes no sense."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from allformers import cli
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.tokenizers import ByteTokenizer
from conftest import perturb


class Result(NamedTuple):
    status: int
    output: str
    errors: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command with some arguments, in this process."""

    def run(*arguments: object, stdin: str | None = None) -> Result:
        monkeypatch.setattr(sys, "argv", ["allformers", *map(str, arguments)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return Result(stopped.value.code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = GPT2(GPT2Config.tiny())
    perturb(model)
    model.save_pretrained(folder)
    ByteTokenizer().save(folder)
    return folder


def test_generate_continues_a_text_and_tells_the_speed_apart_from_it(run: Run) -> None:
    result = run("generate", "The for statement", "-n", 12, "--seed", 1)
    assert result.status == 0
    assert result.output.startswith("The for statement")
    assert len(result.output) > len("The for statement\n")
    assert re.fullmatch(r"12 tokens in [\d.]+ s, [\d.]+ tokens/s\n", result.errors)


def test_generate_reads_standard_input_and_repeats_itself_by_seed(run: Run) -> None:
    from_argument = run("generate", "The with statement", "-n", 20, "--seed", 5)
    for arguments in ([], ["-"]):
        assert run("generate", *arguments, "-n", 20, "--seed", 5, stdin="The with statement")[:2] == from_argument[:2]
    assert run("generate", "The with statement", "-n", 20, "--seed", 6).output != from_argument.output


def test_generate_writes_with_any_checkpoint_in_a_folder(run: Run, checkpoint: Path) -> None:
    prompt = "naïve"
    result = run("generate", prompt, "--model", checkpoint, "-n", 30, "--temperature", 0)
    token_ids = torch.tensor([ByteTokenizer().encode(prompt)])
    written = GPT2.from_pretrained(checkpoint).generate(token_ids, max_new_tokens=30, temperature=0)
    assert result.output == ByteTokenizer().decode(written[0].tolist()) + "\n"


def test_generate_takes_every_sampling_option(run: Run, checkpoint: Path) -> None:
    options = ["--temperature", 1.5, "--top-k", 7, "--top-p", 0.8, "--dtype", "bfloat16", "--device", "cpu"]
    assert run("generate", "x", "--model", checkpoint, "-n", 5, "--tokenizer", "bytes", *options).status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate", "x", "--temperature", "-1"], "temperature must be 0"),
        (["generate", "x", "--temperature", "warm"], "--temperature"),
        (["generate", "x", "--top-k", "0"], "top_k must be a whole number of at least 1, not 0"),
        (["generate", "x", "--top-p", "1.5"], "top_p must be above 0 and at most 1, not 1.5"),
        (["generate", "x", "-n", "-3"], "max_new_tokens must be at least 0, not -3"),
        (["generate", "x", "--model", "/no/such/folder"], "there is no folder /no/such/folder"),
        (["generate", "x", "--device", "toaster"], "device 'toaster' cannot be used here"),
        (["generate", "x", "--tokenizer", "runes"], "runes"),
        (["generate", "x", "--colour"], "--colour"),
        (["summary"], "PRESET"),
        (["summary", "./gpt3"], "The presets are: tiny, bundled, gpt2-small, gpt2-medium, gpt2-large, gpt2-xl"),
        (["train", "somewhere", "--file", "/no/such/file"], "/no/such/file cannot be read"),
        (["train", "somewhere", "--steps", "0"], "steps must be at least 1, not 0"),
        (["train", "somewhere", "--validate-every", "0"], "validate_every must be at least 1"),
        (["bench", "--preset", "gpt3"], "there is no preset gpt3"),
        (["bench", "sleep", "--preset", "tiny"], "no row is called sleep"),
        (["bench", "--threads", "0"], "threads must be at least 1"),
        (["paint"], "paint"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.status, result.output) == (2, "")
    assert message in result.errors
    assert result.errors.startswith("allformers: ")
    assert result.errors.count("\n") == 1


def test_a_broken_checkpoint_is_named_and_not_a_traceback(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:5000] if file.suffix == ".safetensors" else content)
    result = run("generate", "x", "--model", tmp_path)
    assert result.status == 2
    assert "model.safetensors is truncated" in result.errors
    assert "Traceback" not in result.errors


def test_without_a_prompt_at_a_terminal_it_asks_for_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    result = run("generate")
    assert result.status == 2
    assert "give a prompt" in result.errors


def test_summary_counts_exactly_and_allocates_nothing_for_the_largest(run: Run) -> None:
    result = run("summary", "gpt2-xl")
    assert result.status == 0
    assert "1,557,611,200 parameters" in result.output
    assert "(three heads head_dim) embed" in result.output
    assert "weights in float32: 5.8 GiB" in result.output


def test_summary_of_a_folder_reads_only_its_configuration(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    result = run("summary", tmp_path, "--dtype", "bfloat16")
    assert result.status == 0
    assert "124,672 parameters" in result.output
    assert "weights in bfloat16: 243.5 KiB" in result.output


def test_train_leaves_a_checkpoint_that_generate_continues_with(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 100)
    output = tmp_path / "model"
    options = ["--steps", 3, "--batch-size", 2, "--validate-every", 2]
    assert run("train", output, "--file", text, *options).status == 0
    record = json.loads((output / "training.json").read_text())
    assert record["recipe"]["steps"] == 3
    assert record["corpus"] == "text.txt"
    assert 0 < record["validation_loss_nats_per_token"] < 6
    assert run("generate", "to be", "--model", output, "-n", 5).status == 0
    first = (output / "model.safetensors").read_bytes()
    assert run("train", output, "--file", text, *options).status == 0
    assert (output / "model.safetensors").read_bytes() == first


def test_train_refuses_a_file_that_is_no_text_or_too_short(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in run("train", tmp_path / "model", "--file", file).errors
    file.write_text("short")
    result = run("train", tmp_path / "model", "--file", file)
    assert result.status == 2
    assert "too short" in result.errors
    assert not (tmp_path / "model").exists()


def test_version_and_help(run: Run) -> None:
    from allformers import __version__

    assert run("--version") == (0, f"{__version__}\n", "")
    assert "generate" in run("--help").output
    assert "--max-new-tokens" in run("generate", "--help").output
