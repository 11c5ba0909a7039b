"""Data: every text becomes the tokens it should, whatever its size and source, and batches can be drawn again."""

import io
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from allformers.inputs.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    JsonTokenizer,
    Tokenizer,
    load_tokenizer,
)
from allformers.training import data
from allformers.training.data import (
    CORPORA,
    HELLO_WORLD,
    Remote,
    draw_batch,
    is_prepared,
    open_tokens,
    prepare,
    python_documentation,
    split,
)

TEXT = "Wörter,  zwei\n\n und\tmehr \r\n <|endoftext|> 'tis'll 12 345 \u3000 日本語!\n"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a few characters at a time, as if the text were large."""
    monkeypatch.setattr(data, "_CHUNK", 7)
    monkeypatch.setattr(data, "_CONTEXT", 8)


@pytest.mark.parametrize("kind", ["bytes", "characters", "gpt2"])
def test_a_file_becomes_the_tokens_of_its_whole_text(
    tmp_path: Path, kind: str, small_chunks: None, gpt2_vocabulary: None
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes((TEXT * 5).encode())
    tokens = prepare(str(file), tmp_path / "tokens", kind)
    tokenizer: Tokenizer = {"bytes": ByteTokenizer, "gpt2": GPT2Tokenizer, "characters": lambda: CharTokenizer(TEXT)}[
        kind
    ]()
    expected = tokenizer.encode(TEXT * 5) + ([50256] if kind == "gpt2" else [])
    assert tokens.ids.tolist() == expected
    assert tokens.num_bytes == len((TEXT * 5).encode())
    assert tokens.tokenizer.to_config() == tokenizer.to_config()
    assert open_tokens(tmp_path / "tokens", verify=True).ids.tolist() == expected


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "mistral", "wordpiece"])
def test_a_document_in_parts_has_the_ids_of_the_whole(
    kind: str, tokenizers: dict[str, Tokenizer], small_chunks: None
) -> None:
    tokenizer, num_cuts, random_ = tokenizers[kind], 0, random.Random(0)
    words = ["the", "for", " ", "  ", "\n", "\t", "1", "é", ".", "\u3000", "</s>"]
    for _ in range(100):
        text = "".join(random_.choices(words, k=random_.randint(5, 60)))
        end, start = data._find_cut(text, tokenizer)
        if end:
            num_cuts += 1
            assert text[end:start] in ("", " ")
            parts = [text[:end], text[start:]]
            assert [one for part in parts for one in tokenizer.encode_part(part)] == tokenizer.encode_part(text)
    assert num_cuts > 30


def test_a_tokenizer_that_can_be_cut_nowhere_reads_the_whole() -> None:
    class Reversed(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            return super().encode(text)[::-1]

    text = " ".join(map(str, range(1000)))
    assert data._find_cut(text, Reversed()) == (0, 0)
    assert data._find_cut(text, ByteTokenizer())[0] > 0


@pytest.fixture(scope="module")
def tokenizers(gpt2_files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """GPT-2's files, two that write spaces as letters and put one in front of each text, and one that drops them."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers

    letters = ["<unk>", "▁", "t", "h", "e", "th", "the", "▁the", "\n", "1", ".", "f", "o", "r", "or", "▁▁"]
    unions = [("t", "h"), ("th", "e"), ("▁", "the"), ("o", "r"), ("▁", "▁")]
    bpe = models.BPE({letter: place for place, letter in enumerate(letters)}, unions, unk_token="<unk>", fuse_unk=True)
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    metaspace = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    wordpiece = models.WordPiece({"[UNK]": 0, "the": 1, "for": 2, "1": 3}, unk_token="[UNK]")
    made: dict[str, Tokenizer] = {"gpt2": load_tokenizer(gpt2_files, 50257)}
    for name, model, normalizer, pre_tokenizer in (
        ("llama2", bpe, prepend, None),
        ("mistral", bpe, None, metaspace),
        ("wordpiece", wordpiece, normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    ):
        backend = Backend(model)
        backend.add_special_tokens(["</s>"])
        if normalizer is not None:
            backend.normalizer = normalizer
        if pre_tokenizer is not None:
            backend.pre_tokenizer = pre_tokenizer
        path = tmp_path_factory.mktemp(name) / "tokenizer.json"
        backend.save(str(path))
        made[name] = JsonTokenizer(path)
    return made


def test_a_folder_is_read_in_the_order_of_its_paths_without_hidden_files(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    (texts / "b").mkdir(parents=True)
    (texts / ".git").mkdir()
    for name, content in {"b/2.txt": "two ", "a.txt": "one ", "c.md": "three", ".git/x": "no", ".hidden": "no"}.items():
        (texts / name).write_text(content)
    assert bytes(prepare(str(texts), tmp_path / "all").ids.tolist()) == b"one two three"
    assert bytes(prepare(str(texts), tmp_path / "some", glob="**/*.txt").ids.tolist()) == b"one two "
    with pytest.raises(ValueError, match=r"\*\.rst"):
        prepare(str(texts), tmp_path / "none", glob="*.rst")


def test_the_end_of_text_stands_after_each_document(tmp_path: Path, gpt2_vocabulary: None) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "1").write_text("one")
    (texts / "2").write_text("two")
    encode = GPT2Tokenizer().encode
    expected = [*encode("one"), 50256, *encode("two"), 50256]
    assert prepare(str(texts), tmp_path / "tokens", "gpt2").ids.tolist() == expected


@pytest.mark.parametrize(
    ("template", "before", "after"),
    [("<s> $A", [0], [1]), ("<s> $A </s>", [0], [1]), ("$A [SEP]", [], [2, 1]), ("$A", [], [1])],
)
def test_special_tokens_stand_once_a_document_however_many_chunks_it_has(
    tmp_path: Path, template: str, before: list[int], after: list[int], small_chunks: None
) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors

    ids = {"<s>": 0, "</s>": 1, "[SEP]": 2, "one": 3, "two": 4, "three": 5}
    backend = Backend(models.WordLevel(ids, unk_token="[SEP]"))
    backend.add_special_tokens(["<s>", "</s>", "[SEP]"])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(ids.items())[:3])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = JsonTokenizer(tmp_path / "tokenizer.json")
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "1").write_text("one two three one two three")
    (texts / "2").write_text("two")
    expected = [*before, *[3, 4, 5] * 2, *after, *before, 4, *after]
    assert prepare(str(texts), tmp_path / "tokens", tokenizer).ids.tolist() == expected
    around = tokenizer.special_ids()
    for text in ("one two", "</s> three <s>"):
        assert [*around[0], *tokenizer.encode_part(text), *around[1]] == tokenizer.encode(text)


def test_standard_input_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert bytes(prepare("-", tmp_path / "tokens").ids.tolist()).decode() == TEXT


def test_a_named_corpus_needs_no_file(tmp_path: Path) -> None:
    tokens = prepare("hello-world", tmp_path / "tokens", "characters")
    assert tokens.tokenizer.decode(tokens.ids.tolist()) == HELLO_WORLD
    described = json.loads((tmp_path / "tokens" / "data.json").read_text())
    assert (described["source"], described["tokens"]) == ("hello-world", len(HELLO_WORLD))
    assert is_prepared(tmp_path / "tokens")


def test_the_built_in_corpus_is_a_text_of_some_length() -> None:
    text = python_documentation()
    assert len(text) > 300_000
    assert '"for" statement' in text


def test_a_corpus_on_the_network_can_be_given_as_a_file_whose_digest_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file.txt"
    file.write_text("To be, or not to be")
    monkeypatch.setitem(CORPORA, "shakespeare", Remote("https://example.org/none.txt", data.sha256(file)))
    tokens = prepare("shakespeare", tmp_path / "tokens", "characters", file=file)
    assert (len(tokens.ids), tokens.tokenizer.vocab_size) == (19, len(set("To be, or not to be")))
    assert tokens.text_sha256 == data.sha256(file)


@pytest.mark.network
def test_tiny_shakespeare_is_fetched_and_is_the_published_one(tmp_path: Path) -> None:
    tokens = prepare("tiny-shakespeare", tmp_path / "tokens", "characters")
    assert (len(tokens.ids), tokens.tokenizer.vocab_size) == (1_115_394, 65)
    corpus = CORPORA["tiny-shakespeare"]
    assert isinstance(corpus, Remote)
    assert tokens.text_sha256 == corpus.sha256


def test_a_file_that_is_not_the_corpus_is_refused_with_both_digests(tmp_path: Path) -> None:
    file = tmp_path / "fake.txt"
    file.write_text("To be")
    with pytest.raises(ValueError, match=r"tiny-shakespeare.*[0-9a-f]{64}.*86c4e6aa"):
        prepare("tiny-shakespeare", tmp_path / "tokens", file=file)
    assert not (tmp_path / "tokens").exists()


def test_a_corpus_is_downloaded_once_and_its_digest_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    source = tmp_path / "served.txt"
    source.write_text("served")
    asked: list[str] = []

    def download(url: str, output: str, _: object) -> None:
        asked.append(url)
        Path(output).write_bytes(source.read_bytes())

    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr("pooch.core.choose_downloader", lambda url, progressbar=False: download)
    monkeypatch.setitem(CORPORA, "served", Remote("https://example.org/served.txt", data.sha256(source)))
    for count in range(2):
        assert bytes(prepare("served", tmp_path / f"tokens{count}").ids.tolist()) == b"served"
    assert asked == ["https://example.org/served.txt"]

    monkeypatch.setitem(CORPORA, "served", Remote("https://example.org/served.txt", "0" * 64))
    with pytest.raises(ValueError, match=r"https://example\.org/served\.txt.*SHA-256.* 0"):
        prepare("served", tmp_path / "other")


def test_without_a_network_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch
    import requests

    def fail(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr(requests, "get", fail)
    with pytest.raises(ValueError, match=r"ConnectionError.*--file"):
        prepare("tiny-shakespeare", tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"\xff\xfe", "bytes", "UTF-8"),
        (b"", "bytes", r"text\.txt"),
        (b"", "characters", "empty"),
        (b"x", "runes", "tokenizer .*bytes, characters, gpt2.*'runes'"),
    ],
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(
    tmp_path: Path, content: bytes, kind: str, message: str
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare(str(file), tmp_path / "tokens", kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


def test_a_source_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\./nothing.*hello-world, python-docs"):
        prepare("./nothing", tmp_path / "tokens")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="tokens"):
        prepare("hello-world", tmp_path / "tokens")
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["mine"]


def test_large_vocabularies_take_four_bytes_a_token(tmp_path: Path) -> None:
    alphabet = "".join(chr(0x20000 + number) for number in range(2**16 + 10))
    file = tmp_path / "text.txt"
    file.write_text(alphabet[::-1])
    tokens = prepare(str(file), tmp_path / "tokens", "characters")
    assert tokens.ids.dtype == torch.uint32
    assert tokens.ids.tolist() == list(range(2**16 + 10))[::-1]
    inputs, targets = draw_batch(tokens.ids, 3, 5, torch.Generator().manual_seed(0))
    assert torch.equal(inputs - 1, targets)


def test_tokens_are_mapped_and_not_read(tmp_path: Path) -> None:
    """Of a file of two gigabytes that was never written, only the pages that are touched take memory."""
    count = 2**30
    (tmp_path / "tokens.bin").touch()
    with (tmp_path / "tokens.bin").open("r+b") as file:
        file.truncate(2 * count)
        file.seek(2 * (count - 1))
        file.write(np.uint16(7).tobytes())
    description = {"tokens": count, "vocab_size": 256, "bytes": count, "text_sha256": "", "tokens_sha256": ""}
    (tmp_path / "data.json").write_text(json.dumps(description))
    ByteTokenizer().save(tmp_path)
    before = _resident()
    tokens = open_tokens(tmp_path)
    assert tokens.ids[-1].item() == 7
    draw_batch(tokens.ids, 100, 50, torch.Generator().manual_seed(0))
    assert _resident() - before < 50 * 2**20


def _resident() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("resident memory is read from /proc")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def test_damaged_data_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    prepare("hello-world", folder)
    content = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"\b168\b.*\b167\b"):
        open_tokens(folder)
    (folder / "tokens.bin").write_bytes(content[:-2] + b"??")
    open_tokens(folder)
    with pytest.raises(ValueError, match=r"tokens\.bin"):
        open_tokens(folder, verify=True)
    (folder / "data.json").write_text("{}")
    with pytest.raises(ValueError, match=r"data\.json"):
        open_tokens(folder)


def test_progress_is_reported_in_bytes(tmp_path: Path, small_chunks: None) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    reports: list[tuple[int, int]] = []
    prepare(str(file), tmp_path / "tokens", on_progress=lambda done, total: reports.append((done, total)))
    size = len(TEXT.encode())
    assert reports[-1] == (size, size)
    assert reports == sorted(reports)
    assert len(reports) > 3


def test_targets_are_inputs_moved_on_by_one_and_every_passage_can_come() -> None:
    tokens = torch.arange(10)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = draw_batch(tokens, 500, 7, generator)
    assert torch.equal(targets, inputs + 1)
    assert set(inputs[:, 0].tolist()) == {0, 1, 2}  # the last passage ends with the last token
    again = draw_batch(tokens, 500, 7, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], inputs)


def test_processes_cut_their_rows_from_the_same_batch() -> None:
    tokens = torch.arange(1000)
    whole, halves = torch.Generator().manual_seed(3), [torch.Generator().manual_seed(3) for _ in range(2)]
    for _ in range(3):
        inputs, targets = draw_batch(tokens, 8, 16, whole)
        parts = [draw_batch(tokens, 8, 16, g, slice(4 * i, 4 * i + 4)) for i, g in enumerate(halves)]
        assert torch.equal(torch.cat([part[0] for part in parts]), inputs)
        assert torch.equal(torch.cat([part[1] for part in parts]), targets)


def test_a_text_too_short_for_a_passage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\b8 tokens.*\b8\b"):
        draw_batch(torch.arange(8), 1, 8, torch.Generator())
    draw_batch(torch.arange(9), 1, 8, torch.Generator())


def test_the_text_is_cut_where_it_says() -> None:
    train, validation = split(torch.arange(100), 0.1)
    assert (train.tolist(), validation.tolist()) == (list(range(90)), list(range(90, 100)))
