"""The command as a person types it: what it prints, where, and how it refuses what makes no sense."""

import dataclasses
import io
import json
import math
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from allformers import cli
from allformers.cli.write import until
from allformers.inputs.tokenizers import ByteTokenizer
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.training.runs import read_metrics
from conftest import perturb


class Result(NamedTuple):
    status: int
    output: str
    errors: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command with some arguments, in this process; how fast the machine is may not matter."""
    monkeypatch.setattr("allformers.training.train.peak_rate", lambda *_: 1e9)

    def run(*arguments: object, stdin: str | None = None) -> Result:
        monkeypatch.setattr(sys, "argv", ["allformers", *map(str, arguments)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
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


@pytest.mark.filterwarnings("always")
def test_a_warning_is_printed_once_and_without_source_lines(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "odd")
    described = json.loads((tmp_path / "odd" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**described, "flash_dance": True}), encoding="utf-8")
    result = run("generate", "a", "--model", tmp_path / "odd", "-n", 1)
    (told,) = [line for line in result.errors.splitlines() if "flash_dance" in line]
    assert told.startswith(f"allformers: warning: {tmp_path / 'odd'}/config.json: ignoring flash_dance")
    assert "warnings.warn" not in result.errors


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


@pytest.mark.parametrize("weights", ["packed", "int8", "int4"])
def test_every_weight_format_writes(run: Run, weights: str) -> None:
    plain = run("generate", "The for statement", "-n", 20, "--temperature", 0)
    other = run(
        "generate", "The for statement", "-n", 20, "--temperature", 0, "--weights", weights, "--prefill-chunk-size", 5
    )
    assert other.status == 0
    assert len(other.output) > 30
    assert (other.output == plain.output) or weights == "int4"


def test_the_cost_of_quantization_can_be_measured(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The for statement is used to iterate over the elements of a sequence. " * 6)
    found = {}
    for weights in ("plain", "packed", "int8", "int4"):
        assert run("evaluate", "bundled", text, "--weights", weights, "--json", tmp_path / "found.json").status == 0
        found[weights] = json.loads((tmp_path / "found.json").read_text())["loss"]
    assert found["packed"] == pytest.approx(found["plain"], abs=1e-5)
    assert 1e-5 < abs(found["int8"] - found["plain"]) < abs(found["int4"] - found["plain"]) < 0.2


def test_generate_takes_every_sampling_option(run: Run, checkpoint: Path) -> None:
    options = ["--temperature", 1.5, "--top-k", 7, "--top-p", 0.8, "--dtype", "bfloat16", "--device", "cpu"]
    assert run("generate", "x", "--model", checkpoint, "-n", 5, "--tokenizer", "bytes", *options).status == 0


def writes_only(token_id: int, folder: Path, vocab_size: int = 8) -> Path:
    """A model that writes one token again and again, with a tokenizer of words."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    model = GPT2(GPT2Config.tiny(vocab_size=vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.final_norm.bias.fill_(1)
        model.token_embedding.weight[token_id] = 1
    model.save_pretrained(folder)
    backend = Backend(models.WordLevel({"hi": 0, "☃": 1, "[UNK]": 2, "so": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<turn>", "<end>"])
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_generate_ends_where_the_checkpoint_says(run: Run, tmp_path: Path) -> None:
    folder = writes_only(4, tmp_path)
    assert run("generate", "hi", "--model", folder, "-n", 3).output == "hi <turn> <turn> <turn>\n"
    assert run("generate", "hi", "--model", folder, "-n", 3, "--stop", "<turn>").output == "hi \n"
    assert run("generate", "hi", "--model", folder, "-n", 3, "--stop", "x", "--stop", "n> <").output == "hi <tur\n"
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 4]}')
    assert run("generate", "hi", "--model", folder, "-n", 3).output == "hi\n"


def test_an_id_without_a_token_ends_nothing(run: Run, tmp_path: Path) -> None:
    folder = writes_only(7, tmp_path)
    result = run("generate", "hi", "--model", folder, "-n", 3)
    assert (result.status, result.output) == (0, "hi\n")
    assert "3 tokens" in result.errors
    for command in (["compare", "hi", "hi so"], ["inspect", "hi"]):
        assert "(none)" in run(*command, "--model", folder).output


def test_the_revision_is_the_tokenizers_too(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import _CACHED_NO_EXIST, errors

    for revision, word in (("main", 1), ("v2", 3)):
        (tmp_path / revision).mkdir()
        writes_only(word, tmp_path / revision)
    path = tmp_path / "v2" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"so"', '"well"'), encoding="utf-8")

    def download(name: str, file: str, revision: str | None = None) -> str:
        path = tmp_path / (revision or "main") / file
        if not path.is_file():
            raise errors.LocalEntryNotFoundError(file)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: _CACHED_NO_EXIST)
    assert run("generate", "hi", "--model", "acme/tiny", "-n", 2).output == "hi ☃ ☃\n"
    assert run("generate", "hi", "--model", "acme/tiny", "-n", 2, "--revision", "v2").output == "hi well well\n"


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "☃"), ("cp1252", "?"), ("ascii", "?")])
def test_what_the_output_cannot_show_is_replaced(
    encoding: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.BytesIO()
    monkeypatch.setattr(
        sys, "argv", ["allformers", "generate", "hi", "-n", "2", "--model", str(writes_only(1, tmp_path))]
    )
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding=encoding))
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()
    assert output.getvalue().decode(encoding).split() == ["hi", shown, shown]


def test_a_prompt_that_is_not_utf8_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("generate", "a\udcff", "-n", 2)
    assert (result.status, result.output) == (2, "")
    assert "UTF-8" in result.errors
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    result = run("generate", "-n", 2)
    assert (result.status, result.output) == (2, "")
    assert "UTF-8" in result.errors


def test_a_text_ends_before_a_stop_and_shows_nothing_that_may_become_one() -> None:
    assert list(until(["stop"], iter(["a st", "o", "ne sto", "p b"]))) == ["a ", "", "stone ", ""]
    assert list(until(["ab", "b"], iter(["x", "ab"]))) == ["x", ""]
    assert list(until(["abc"], iter(["a", "b"]))) == ["", "", "ab"]
    assert list(until([], iter(["a", "b"]))) == ["a", "b", ""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", ""], "prompt"),
        (["generate", "x", "--temperature", "-1"], "temperature -1"),
        (["generate", "x", "--temperature", "warm"], "--temperature"),
        (["generate", "x", "--top-k", "0"], "top_k 0"),
        (["generate", "x", "--top-p", "1.5"], "top_p 1.5"),
        (["generate", "x", "-n", "-3"], "max_new_tokens -3"),
        (["generate", "x", "--model", "/no/such/folder"], "/no/such/folder"),
        (["generate", "x", "--device", "toaster"], "toaster"),
        (["generate", "x", "--tokenizer", "runes"], "runes"),
        (["generate", "x", "--colour"], "--colour"),
        (["generate", "x", "--stop", ""], "--stop"),
        (["summary"], "PRESET"),
        (["summary", "./gpt3"], "gpt3 tiny bundled gpt2-small gpt2-medium gpt2-large gpt2-xl"),
        (["train", "bundled", "somewhere", "--corpus", "/no/such/file"], "/no/such/file"),
        (["train", "bundled", "somewhere", "--steps", "0"], "steps 0"),
        (["train", "bundled", "somewhere", "--embedding-dim", "100", "--num-heads", "3"], "100 3"),
        (["train", "bundled", "somewhere", "--init-from", "bundled", "--num-layers", "2"], "num_layers"),
        (["train", "bundled", "somewhere", "--max-minutes", "0"], "max_minutes 0"),
        (["train", "bundled", "somewhere", "--parallel", "magic"], "parallel ddp fsdp magic"),
        (["train", "gpt2-124m", "somewhere"], "corpus"),
        (["train", "gpt3", "somewhere"], "gpt3"),
        (["train", "plot", "/no/such/run"], "/no/such/run"),
        (["train", "plot", "/no/such/run", "--by", "moons"], "by steps tokens seconds moons"),
        (["data", "prepare", "/no/such/file", "somewhere"], "/no/such/file hello-world python-docs tiny-shakespeare"),
        (["data", "prepare", "hello-world", "somewhere", "--tokenizer", "./no"], "./no"),
        (["evaluate", "bundled", "/no/such/file"], "/no/such/file"),
        (["evaluate", "bundled", str(Path(__file__)), "--window", "300"], "window 300"),
        (
            ["evaluate", "bundled", str(Path(__file__)), "--stride", "0"],
            "stride 256 0",
        ),
        (["evaluate", "bundled", str(Path(__file__)), "--batch-size", "0"], "batch_size 0"),
        (["evaluate", "bundled", "/dev/null"], "tokens 0"),
        (["bench", "--precision", "float8"], "precision float32 bfloat16"),
        (["inspect", ""], "prompt"),
        (["inspect", "x" * 300], "prompt 300 256"),
        (["inspect", "x", "--top", "0"], "top 0"),
        (["inspect", "x", "--layer", "9", "--out", "page.html"], "head"),
        (["inspect", "x", "--out", "no/such/page.html"], "no/such"),
        (["trace", "./gpt3"], "gpt3 tiny bundled"),
        (["trace", "tiny", "--seq", "129"], "seq 128 129"),
        (["compare", "x"], "text model"),
        (["compare", "x", "y", "--with", "bundled"], "models text 2"),
        (["experiment", "alchemy"], "alchemy causal-mask pre-norm"),
        (["bench", "--preset", "gpt3"], "gpt3"),
        (["bench", "sleep", "--preset", "tiny"], "sleep"),
        (["bench", "--threads", "0"], "threads 0"),
        (["paint"], "paint"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(
    run: Run, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.status, result.output) == (2, "")
    assert all(word in result.errors for word in message.split()), result.errors
    assert result.errors.startswith("allformers: ")
    assert result.errors.count("\n") == 1


def test_a_broken_checkpoint_is_named_and_not_a_traceback(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:5000] if file.suffix == ".safetensors" else content)
    result = run("generate", "x", "--model", tmp_path)
    assert result.status == 2
    assert "model.safetensors" in result.errors
    assert "Traceback" not in result.errors


def test_without_a_prompt_at_a_terminal_it_asks_for_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    result = run("generate")
    assert result.status == 2
    assert "prompt" in result.errors


def test_summary_counts_exactly_and_allocates_nothing_for_the_largest(run: Run) -> None:
    result = run("summary", "gpt2-xl")
    assert result.status == 0
    assert "1,557,611,200 parameters" in result.output
    assert "(qkv heads head_dim) embed" in result.output
    assert "weights in float32: 5.8 GiB" in result.output


def test_summary_of_a_folder_reads_only_its_configuration(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    result = run("summary", tmp_path, "--dtype", "bfloat16")
    assert result.status == 0
    assert "124,672 parameters" in result.output
    assert "weights in bfloat16: 243.5 KiB" in result.output


def test_hello_world_writes_its_sentence_exactly(run: Run, tmp_path: Path) -> None:
    from allformers.training.data import HELLO_WORLD

    result = run("train", "hello-world", tmp_path / "run")
    assert result.status == 0
    assert "the recipe is done, at step 200" in result.errors
    assert read_metrics(tmp_path / "run")[-1]["loss"] < 0.01
    written = run("generate", "H", "--model", tmp_path / "run", "--temperature", 0, "-n", len(HELLO_WORLD) - 1)
    assert written.output == HELLO_WORLD + "\n"


def test_train_takes_a_text_and_every_value_of_its_recipe(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 100)
    output = tmp_path / "run"
    options = ["--steps", 3, "--batch-size", 2, "--seq-length", 20, "--validate-every", 2, "--embedding-dim", 32]
    result = run("train", "shakespeare-char", output, "--corpus", text, *options, "--no-tie-embeddings")
    assert result.status == 0
    assert "step 2: loss" in result.errors
    record = json.loads((output / "training.json").read_text())
    model = record["recipe"]["model"]
    assert (record["recipe"]["steps"], model["context_length"], model["mlp_dim"]) == (3, 20, 128)
    assert (model["vocab_size"], model["tie_embeddings"]) == (len(set(text.read_text())), False)
    assert record["corpus"]["source"] == "text.txt"
    assert 0 < record["result"]["validation_loss_nats_per_token"] < 6
    assert run("generate", "to be", "--model", output, "-n", 5).status == 0
    again = run("train", "shakespeare-char", output, "--corpus", text, *options, "--no-tie-embeddings")
    assert str(output) in again.errors
    assert again.status == 2


def test_a_run_stopped_by_its_budget_says_how_to_use_what_there_is(run: Run, tmp_path: Path) -> None:
    result = run("train", "hello-world", tmp_path, "--max-steps", 2)
    assert "the budget of 2 steps is spent, at step 2" in result.errors
    assert "--model" in result.errors
    assert "step-00000002" in result.errors
    resumed = run("train", "hello-world", tmp_path, "--resume", "--max-steps", 3)
    assert "at step 3" in resumed.errors


def test_train_refuses_a_text_that_is_none_or_too_short(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in run("train", "bundled", tmp_path / "run", "--corpus", file).errors
    file.write_text("short")
    result = run("train", "bundled", tmp_path / "run", "--corpus", file)
    assert result.status == 2
    assert "5" in result.errors


def test_the_curves_of_runs_are_drawn_as_png_and_svg(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run("train", "hello-world", tmp_path / name, "--max-steps", 5)
    result = run("train", "plot", tmp_path / "one")
    assert result.output == f"{tmp_path}/one/losses.png\n{tmp_path}/one/losses.svg\n"
    assert (tmp_path / "one" / "losses.png").read_bytes().startswith(b"\x89PNG")
    result = run("train", "plot", tmp_path / "one", tmp_path / "two", "--by", "tokens", "--output", tmp_path / "both")
    drawing = (tmp_path / "both.svg").read_text()
    assert result.status == 0
    assert "<svg" in drawing


def test_data_is_prepared_with_digests_and_then_learned_from(run: Run, tmp_path: Path) -> None:
    result = run("data", "prepare", "-", tmp_path / "tokens", stdin="some text\n" * 50)
    assert result.output.startswith("500 tokens of 256 kinds, from 500 bytes of text\ntext    SHA-256 ")
    arguments = ["--steps", 1, "--seq-length", 20, "--batch-size", 2]
    assert run("train", "bundled", tmp_path / "run", "--corpus", tmp_path / "tokens", *arguments).status == 0
    assert run("data", "prepare", "hello-world", tmp_path / "tokens").status == 2  # it is there already


def test_data_can_be_prepared_with_a_checkpoints_tokenizer(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    result = run("data", "prepare", "hello-world", tmp_path / "tokens", "--tokenizer", checkpoint)
    assert result.output.startswith("84 tokens of 256 kinds")


def test_evaluate_prints_what_the_functions_give(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    from allformers.training.evaluation import evaluate

    text = "Wörter, words, and words again. " * 20
    result = run("evaluate", checkpoint, "-", "--stride", 32, "--json", tmp_path / "figures.json", stdin=text)
    assert result.status == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    token_ids = torch.tensor(ByteTokenizer().encode(text))
    expected = evaluate(GPT2.from_pretrained(checkpoint), token_ids, 128, 32)
    assert figures["loss"] == pytest.approx(expected.loss)
    assert figures["bits_per_byte"] == pytest.approx(expected.loss / math.log(2))
    assert figures["word_perplexity"] == pytest.approx(math.exp(expected.loss * len(token_ids) / 100))
    assert (figures["tokens"], figures["bytes"], figures["words"]) == (660, 660, 100)
    assert figures["predicted_tokens"] == expected.num_tokens == 659
    (printed,) = re.findall(r"^perplexity +([\d,.]+)$", result.output, re.MULTILINE)
    assert float(printed.replace(",", "")) == pytest.approx(expected.perplexity, rel=1e-5)
    assert "659 of 660 tokens predicted" in result.output


def test_evaluate_predicts_each_token_once_by_default(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    result = run("evaluate", checkpoint, "-", "--json", tmp_path / "figures.json", stdin="word " * 100)
    assert result.status == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["tokens"], figures["predicted_tokens"]) == (500, 499)
    assert (figures["window"], figures["stride"]) == (128, 127)


def test_inspect_prints_what_comes_next_or_draws_everything(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    printed = run("inspect", "The for", "--top", 3)
    assert printed.status == 0
    assert printed.output.count("%") == 7 * 3
    folder = run("inspect", "The for", "--model", checkpoint, "--out", tmp_path / "figures")
    assert folder.status == 0
    files = sorted((tmp_path / "figures").iterdir())
    assert len(files) == 2 * 7
    assert {file.suffix for file in files} == {".png", ".svg"}
    assert folder.output.split() == [str(file) for file in sorted(files, key=lambda f: folder.output.index(str(f)))]
    page = run("inspect", "The for", "--model", checkpoint, "--layer", 1, "--head", 2, "--out", tmp_path / "page.html")
    assert page.output == f"{tmp_path}/page.html\n"
    content = (tmp_path / "page.html").read_text()
    assert content.count("<section") == content.count("<svg") == 7
    assert "layer 1, head 2" in content


WORDS = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "bank", "of", "river", "is", "wide"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BERT with a tokenizer that knows a few words, and a ViT with names for its labels."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    from allformers.models.bert.bert import Bert, BertConfig
    from allformers.models.vit.vit import ViT, ViTConfig

    torch.manual_seed(0)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("bert", "vit")}
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(WORDS[:4])
    perturb(Bert(dataclasses.replace(BertConfig.tiny(), vocab_size=10))).save_pretrained(folders["bert"])
    tokenizer.save(str(folders["bert"] / "tokenizer.json"))
    perturb(ViT(ViTConfig.tiny())).save_pretrained(folders["vit"])
    described = json.loads((folders["vit"] / "config.json").read_text())
    described["id2label"]["3"] = "tabby, tabby cat"
    (folders["vit"] / "config.json").write_text(json.dumps(described))
    return folders


def test_inspect_shows_what_a_bert_would_fill_in(run: Run, encoders: dict[str, Path], tmp_path: Path) -> None:
    from allformers.models.bert.bert import Bert

    one = run("inspect", "the bank of the [MASK] is wide", "--model", encoders["bert"], "--top", 2)
    rows = [line for line in one.output.splitlines() if "%" in line]
    assert len(rows) == 1
    assert rows[0].count("%") == 2
    token_ids = torch.tensor([[1, 4, 5, 6, 4, 3, 8, 9, 2]])
    with torch.no_grad():
        best = int(Bert.from_pretrained(encoders["bert"])(token_ids)[0, 5].argmax())
    assert rows[0].split()[1] == WORDS[best]
    each = run("inspect", "the river is wide", "--model", encoders["bert"]).output.splitlines()
    assert [line.split()[0] for line in each if "%" in line] == ["the", "river", "is", "wide"]
    drawn = run("inspect", "the river is wide", "--model", encoders["bert"], "--out", tmp_path / "page.html")
    assert drawn.status == 0
    assert (tmp_path / "page.html").read_text().count("<svg") == 6


def test_inspect_shows_what_a_vit_sees(run: Run, encoders: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    made = run("inspect", "--model", encoders["vit"], "--top", 10)
    assert made.output.count("%") == 10
    assert "tabby" in made.output
    assert "tabby cat" not in made.output
    Image.new("RGB", (50, 40), (200, 10, 10)).save(tmp_path / "red.png")
    red = run("inspect", tmp_path / "red.png", "--model", encoders["vit"], "--top", 10)
    assert "red.png" in red.output
    assert red.output.count("%") == 10
    drawn = run("inspect", "--model", encoders["vit"], "--out", tmp_path / "page.html")
    assert drawn.status == 0
    assert (tmp_path / "page.html").read_text().count("<svg") == 6


def test_commands_say_what_an_encoder_cannot_do(run: Run, encoders: dict[str, Path], tmp_path: Path) -> None:
    for arguments in (["generate", "x"], ["compare", "the", "bank"]):
        refused = run(*arguments, "--model", encoders["bert"])
        assert refused.status == 2
        assert "Bert" in refused.errors
    assert "ViT" in run("evaluate", encoders["vit"], __file__).errors
    assert "images" in run("trace", encoders["vit"], "--prompt", "x").errors
    assert "blocks" in run("trace", encoders["bert"], "--prompt", "the bank").output
    assert "no.png" in run("inspect", "no.png", "--model", encoders["vit"]).errors
    assert Path(__file__).name in run("inspect", __file__, "--model", encoders["vit"]).errors
    assert "prompt" in run("inspect", "--model", encoders["bert"]).errors


@pytest.mark.filterwarnings("ignore:.* leaves out ")
def test_commands_say_what_an_encoder_without_a_head_cannot_do(
    run: Run, encoders: dict[str, Path], tmp_path: Path
) -> None:
    from allformers import BertEncoder, ViTEncoder

    BertEncoder.from_pretrained(encoders["bert"]).save_pretrained(tmp_path / "bert")
    ViTEncoder.from_pretrained(encoders["vit"]).save_pretrained(tmp_path / "vit")
    for name, model_class in (("bert", BertEncoder), ("vit", ViTEncoder)):
        refused = run("inspect", "the bank", "--model", tmp_path / name)
        assert refused.status == 2
        assert model_class.__name__ in refused.errors
        assert "blocks" in run("trace", tmp_path / name).output
        assert "parameters" in run("summary", tmp_path / name).output
    assert "images" in run("trace", tmp_path / "vit", "--prompt", "x").errors


def test_inspect_shows_images_that_are_not_square(run: Run, encoders: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    shutil.copytree(encoders["vit"], tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"size": {"height": 24, "width": 40}}')
    Image.new("RGB", (50, 40), (200, 10, 10)).save(tmp_path / "red.png")
    drawn = run("inspect", tmp_path / "red.png", "--model", tmp_path / "vit", "--out", tmp_path / "page.html")
    assert drawn.status == 0
    assert "2,4" in (tmp_path / "page.html").read_text()  # the last of 3 rows of 5 patches
    assert "3,0" not in (tmp_path / "page.html").read_text()


def test_trace_lists_every_operation_in_three_forms(run: Run, tmp_path: Path) -> None:
    table = run("trace", "gpt2-xl")
    assert table.status == 0
    assert "48 x blocks.*.attention" in table.output
    assert "387 operations, 3,506.704 GFLOPs" in table.output
    content = json.loads(run("trace", "tiny", "--format", "json", "--seq", 16, "--batch", 2).output)
    assert content["operations"][2]["sizes"]["batch"] == 2
    assert run("trace", "tiny", "--format", "mermaid", "--output", tmp_path / "drawn").output == ""
    assert (tmp_path / "drawn").read_text().startswith("flowchart TD")
    timed = run("trace", "bundled", "--prompt", "The for", "--all", "--output", tmp_path / "table")
    assert timed.status == 0
    assert "blocks.3.mlp" in (tmp_path / "table").read_text()
    assert " ms" in (tmp_path / "table").read_text()


@pytest.mark.parametrize(("form", "passes"), [("table", 2), ("json", 2), ("mermaid", 1)])
def test_trace_warms_up_where_it_shows_times(run: Run, monkeypatch: pytest.MonkeyPatch, form: str, passes: int) -> None:
    calls = []
    forward = GPT2.forward
    monkeypatch.setattr(GPT2, "forward", lambda *args, **options: calls.append(1) or forward(*args, **options))
    assert run("trace", "bundled", "--prompt", "The", "--format", form).status == 0
    assert len(calls) == passes


def test_compare_says_where_runs_part(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    texts = run("compare", "The for statement", "The with", "--out", tmp_path / "figures")
    assert texts.status == 0
    assert "they part at position 4: f and w" in texts.output
    assert len(list((tmp_path / "figures").iterdir())) == 4
    same = run("compare", "The for", "--with", "bundled")
    assert "do not differ by more than 1e-05" in same.output
    other = GPT2.from_pretrained(checkpoint)
    with torch.no_grad():
        other.blocks[1].mlp.up.bias.add_(1)
    other.save_pretrained(tmp_path / "other")
    ByteTokenizer().save(tmp_path / "other")
    models = run(
        "compare", "The for", "--model", checkpoint, "--with", tmp_path / "other", "--out", tmp_path / "a.html"
    )
    assert "final_norm" in models.output
    assert "<- the first place where they differ" in models.output
    assert (tmp_path / "a.html").exists()


def test_the_help_of_experiment_lists_all_experiments(run: Run) -> None:
    from allformers.experiments import EXPERIMENTS

    listed = run("experiment", "--help").output
    assert all(name in listed for name in EXPERIMENTS)


def test_an_experiment_prints_its_conclusion_and_draws_it(run: Run, tmp_path: Path) -> None:
    result = run("experiment", "scale", "sampling", "--out", tmp_path / "page.html")
    assert result.status == 0
    assert "Why are attention scores divided by the square root of head_dim?" in result.output
    assert (tmp_path / "page.html").read_text().count("<svg") == 2


def test_version_and_help(run: Run) -> None:
    from allformers import __version__

    assert run("--version") == (0, f"{__version__}\n", "")
    assert "generate" in run("--help").output
    listed = run("train", "--help").output
    assert all(name in listed for name in ("hello-world", "shakespeare-char", "bundled", "gpt2-124m", "plot"))
    help_text = " ".join(run("train", "shakespeare-char", "--help").output.split())
    assert "1.76" in help_text
    assert "[default: 2000]" in help_text
    assert "--max-new-tokens" in run("generate", "--help").output


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="here is no device that is always full")
COMMAND = f"{shlex.quote(sys.executable)} -m allformers"


def shell(line: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of bash, in which ALLFORMERS is the command."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("ALLFORMERS", COMMAND)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="bash closes the streams")
@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        pytest.param("ALLFORMERS family | head -c 3", 0, ""),
        pytest.param("ALLFORMERS family >&-", 2, "standard output is closed"),
        pytest.param("ALLFORMERS generate hi -n 60 | head -c 1", 0, "", marks=pytest.mark.slow),
        pytest.param("ALLFORMERS summary gpt2-xl | head -c 3", 0, "", marks=pytest.mark.slow),
        pytest.param("ALLFORMERS family >&- 2>&-", 2, "", marks=pytest.mark.slow),
        pytest.param("ALLFORMERS family 2>&-", 0, "", marks=pytest.mark.slow),
        pytest.param("ALLFORMERS generate hi -n 3 >&-", 2, "standard output is closed", marks=pytest.mark.slow),
        pytest.param("ALLFORMERS evaluate bundled - <&-", 2, "standard input is closed", marks=pytest.mark.slow),
        pytest.param("ALLFORMERS family >/dev/full", 2, "No space left", marks=[pytest.mark.slow, needs_full]),
        pytest.param("ALLFORMERS nonsense 2>/dev/full", 2, "", marks=[pytest.mark.slow, needs_full]),
    ],
)
def test_streams_that_are_closed_or_full(line: str, status: int, said: str) -> None:
    found = shell(line)
    assert found.returncode == status, found.stderr
    assert said in found.stderr
    assert len(found.stderr.splitlines()) == bool(said)


INTERRUPTED = """
import sys
sys.argv[0] = "allformers"
from allformers.__main__ import main
print("started", flush=True)
main()
"""


@pytest.mark.slow
def test_an_interrupt_at_any_moment_ends_a_command_without_a_traceback() -> None:
    moments = random.Random(0)
    for _ in range(40):
        command = [sys.executable, "-c", INTERRUPTED, *moments.choice([["family"], ["generate", "Once", "-n", "300"]])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"  # what Python does before is not ours
        time.sleep(moments.uniform(0.02, 2.5))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode in (0, 130), said
        assert "Traceback" not in said
