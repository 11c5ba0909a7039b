"""Tokenizers: what is encoded comes back, whatever the text, and what cannot be is refused clearly."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allformers.checkpoints import CheckpointError
from allformers.inputs.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    JsonTokenizer,
    Tokenizer,
    load_tokenizer,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))  # any Unicode but lone surrogates, which UTF-8 cannot write


def assert_round_trip(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in token_ids)
    assert tokenizer.decode(token_ids) == text
    assert "".join(tokenizer.decode_stream(token_ids)) == text


@given(TEXTS)
def test_bytes_bring_any_text_back(text: str) -> None:
    assert_round_trip(ByteTokenizer(), text)


@given(TEXTS.filter(len))
def test_characters_bring_a_text_over_their_alphabet_back(text: str) -> None:
    tokenizer = CharTokenizer(text)
    assert_round_trip(tokenizer, text)
    assert tokenizer.vocab_size == len(set(text)) == len(set(tokenizer.encode(tokenizer.characters)))


GPT2_TEXTS = (
    "",
    "Hello world",
    "def f(x):\n    return x ** 2\n",
    "naïve 😀 \n\n  tabs\tand 1234 numbers",
    "I'll we've it's 'quoted'",
    "it's <|endoftext|> here",
    "\x00\x7f\n\n\n",
)


def test_gpt2_brings_texts_back(gpt2_vocabulary: None) -> None:
    for text in GPT2_TEXTS:
        assert_round_trip(GPT2Tokenizer(), text)


def test_gpt2_from_files_beside_a_checkpoint_equals_the_downloaded_one(gpt2_vocabulary: None, gpt2_files: Path) -> None:
    tokenizer = load_tokenizer(gpt2_files, vocab_size=50257)
    assert isinstance(tokenizer, JsonTokenizer)
    assert tokenizer.eos_token_id == GPT2Tokenizer().eos_token_id
    for text in GPT2_TEXTS:
        assert tokenizer.encode(text) == GPT2Tokenizer().encode(text)


def test_gpt2_agrees_with_the_reference(gpt2_files: Path) -> None:
    from transformers import GPT2TokenizerFast

    reference = GPT2TokenizerFast(vocab=str(gpt2_files / "vocab.json"), merges=str(gpt2_files / "merges.txt"))
    tokenizer = load_tokenizer(gpt2_files, vocab_size=50257)
    for text in GPT2_TEXTS:
        assert tokenizer.encode(text) == reference.encode(text)


@pytest.mark.network
def test_gpt2_as_published_agrees_with_published_ids_and_the_reference() -> None:
    from transformers import GPT2TokenizerFast

    tokenizer, reference = GPT2Tokenizer(), GPT2TokenizerFast.from_pretrained("gpt2")
    assert tokenizer.encode("Hello world<|endoftext|>") == [15496, 995, tokenizer.eos_token_id]
    for text in GPT2_TEXTS:
        assert_round_trip(tokenizer, text)
        assert tokenizer.encode(text) == reference.encode(text)


def test_a_character_split_over_tokens_appears_once_it_is_complete() -> None:
    pieces = list(ByteTokenizer().decode_stream("é".encode()))
    assert pieces == ["", "é", ""]


def test_bytes_that_are_no_text_become_the_replacement_character() -> None:
    assert ByteTokenizer().decode([0xFF, 65]) == "\N{REPLACEMENT CHARACTER}A"
    assert "".join(ByteTokenizer().decode_stream([65, 0xC3])) == "A\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("abc"), GPT2Tokenizer()])
def test_ids_outside_the_vocabulary_have_no_bytes_and_no_text(tokenizer: Tokenizer) -> None:
    for token_id in (-1, tokenizer.vocab_size):
        assert not tokenizer.is_token(token_id)
        with pytest.raises(ValueError, match=rf"{token_id}\b.*\b0\b.*\b{tokenizer.vocab_size - 1}\b"):
            tokenizer.token_bytes(token_id)
    assert tokenizer.decode([tokenizer.vocab_size]) == ""  # the model has a row for it, which nothing has trained
    assert list(tokenizer.decode_stream([tokenizer.vocab_size])) == ["", ""]
    with pytest.raises(ValueError, match=r"-1\b"):
        tokenizer.decode([-1])


def test_characters_outside_the_alphabet_are_named() -> None:
    with pytest.raises(ValueError, match=r"3 .*'xz'"):
        CharTokenizer("abc").encode("azbx")
    with pytest.raises(ValueError, match=r"."):
        CharTokenizer("")


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("héllo wörld\n"), GPT2Tokenizer()])
def test_a_saved_tokenizer_is_loaded_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path, tokenizer.vocab_size)
    assert type(loaded) is type(tokenizer)
    assert loaded.to_config() == tokenizer.to_config()


class _Failing(ByteTokenizer):
    def write_files(self, draft: Path) -> None:
        super().write_files(draft)
        raise OSError("no space left")


def test_a_tokenizer_takes_the_place_of_another_ones_files(tmp_path: Path, gpt2_files: Path) -> None:
    others = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model")
    for name in (*others, "notes.txt"):
        (tmp_path / name).write_text("of another")
    GPT2Tokenizer().save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer_config.json", "notes.txt"}
    assert type(load_tokenizer(tmp_path, 50257)) is GPT2Tokenizer
    (tmp_path / "vocab.json").write_text("of another")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match="no space left"):
        _Failing().save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    own = load_tokenizer(gpt2_files, 50257)
    own.save(tmp_path)
    own = load_tokenizer(tmp_path, 50257)
    own.save(tmp_path)  # over its own files
    assert load_tokenizer(tmp_path, 50257).encode("a b") == own.encode("a b")


@pytest.mark.parametrize(
    ("content", "vocab_size", "expected"),
    [
        ('{"tokenizer_class": "ByteTokenizer"}', 256, ByteTokenizer()),
        ('{"tokenizer_class": "CharTokenizer", "characters": "abc"}', 3, CharTokenizer("abc")),
    ],
)
def test_the_files_of_earlier_versions_are_still_read(
    content: str, vocab_size: int, expected: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    assert load_tokenizer(tmp_path, vocab_size).to_config() == expected.to_config()


def test_the_size_of_a_vocabulary_may_tell_the_tokenizer(tmp_path: Path) -> None:
    assert isinstance(load_tokenizer(tmp_path, 50304), GPT2Tokenizer)
    assert isinstance(load_tokenizer(tmp_path, 256), ByteTokenizer)


@pytest.mark.parametrize(
    ("content", "vocab_size", "message"),
    [
        (None, 1000, r"\b1000\b"),
        ('{"tokenizer_class": "CharTokenizer"}', 10, "characters"),
        ('{"tokenizer_class": "ByteTokenizer"}', 100, r"ByteTokenizer.*\b256\b.*\b100\b"),
        ("{broken", 256, r"tokenizer_config\.json"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_a_clear_error(
    content: str | None, vocab_size: int, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path, vocab_size)


def test_without_a_vocabulary_and_a_network_gpt2_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken

    def unreachable(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(CheckpointError, match="TIKTOKEN_CACHE_DIR"):
        GPT2Tokenizer().encode("text")
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        load_tokenizer(tmp_path, 50257)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(CheckpointError, match=r"merges\.txt.*'a b c'"):
        load_tokenizer(tmp_path, 50257)


SENTENCES = ["The for statement is used to iterate.", "naïve café, 1–2 €", "  two  spaces\n\tand a tab", "日本語 🙂"]


def json_file(kind: str, folder: Path) -> Path:
    """A `tokenizer.json` as Llama 3 and Qwen have them (bytes as letters), or as Llama 2 and Gemma (SentencePiece)."""
    from tokenizers import Tokenizer as Described
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    folder.mkdir(exist_ok=True)
    path = folder / "tokenizer.json"
    if kind == "byte level":
        made = Described(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>", "<s>"], show_progress=False
        )
        made.train_from_iterator(SENTENCES[:2] * 20, trainer)
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    else:
        pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{b:02X}>", -9.0) for b in range(256))]
        pieces += [("▁", -2.0), *((letter, -3.0) for letter in "Theforstamniud.,12")]
        vocabulary = {piece: place for place, (piece, _) in enumerate(pieces)}
        made = Described(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.add_special_tokens(["<unk>", "<s>", "</s>"])
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.save(str(path))
    return path


@pytest.mark.parametrize("kind", ["byte level", "sentence piece"])
def test_a_tokenizer_from_a_checkpoints_own_file(kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Described

    path = json_file(kind, tmp_path / "model")
    reference, ours = Described.from_file(str(path)), load_tokenizer(path.parent, 10_000)
    assert isinstance(ours, JsonTokenizer)
    for text in SENTENCES:
        token_ids = ours.encode(text)
        assert token_ids == reference.encode(text).ids
        plain = [token_id for token_id in token_ids if token_id not in ours.special_tokens]
        assert ours.decode(plain) == reference.decode(plain) == text
        assert "".join(ours.decode_stream(plain)) == text
    assert ours.eos_token_id == reference.token_to_id("<|endoftext|>" if kind == "byte level" else "</s>")
    ours.save(tmp_path)
    assert load_tokenizer(tmp_path, 10_000).encode(SENTENCES[1]) == ours.encode(SENTENCES[1])
    for wrong in (-1, ours.vocab_size):
        with pytest.raises(ValueError, match=rf"(?<!\d){wrong}\b"):
            ours.token_bytes(wrong)


@pytest.mark.parametrize("eos", ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"])
@pytest.mark.parametrize("mask", ["[MASK]", "<mask>"])
def test_special_tokens_are_known_by_the_names_that_families_give_them(eos: str, mask: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    assert ByteTokenizer().eos_token_id is ByteTokenizer().mask_token_id is None
    backend = Backend(models.BPE({"a": 0, "b": 1}, []))
    backend.add_special_tokens([mask, eos])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = JsonTokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id) == (2, 3)


def test_a_text_is_neither_cut_nor_padded_to_the_length_of_training(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend

    path = json_file("byte level", tmp_path)
    whole = JsonTokenizer(path).encode(SENTENCES[0])
    backend = Backend.from_file(str(path))
    backend.enable_truncation(4)
    backend.enable_padding(length=500)
    backend.save(str(path))
    assert JsonTokenizer(path).encode(SENTENCES[0]) == whole
    assert len(whole) > 4


def test_a_tokenizer_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path, 100)
    with pytest.raises(CheckpointError, match=r"\b5\b"):
        load_tokenizer(json_file("byte level", tmp_path / "model").parent, 5)
