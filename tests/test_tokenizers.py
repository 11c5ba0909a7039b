"""Tokenizers: what is encoded comes back, whatever the text, and what cannot be is refused clearly."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allformers.checkpoints import CheckpointError
from allformers.tokenizers import ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer, load_tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))  # any Unicode but lone surrogates, which UTF-8 cannot write
relaxed = settings(deadline=None, derandomize=True, max_examples=50)


def assert_round_trip(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in token_ids)
    assert tokenizer.decode(token_ids) == text
    assert "".join(tokenizer.decode_stream(token_ids)) == text


@relaxed
@given(TEXTS)
def test_bytes_bring_any_text_back(text: str) -> None:
    assert_round_trip(ByteTokenizer(), text)


@relaxed
@given(TEXTS.filter(len))
def test_characters_bring_a_text_over_their_alphabet_back(text: str) -> None:
    tokenizer = CharTokenizer(text)
    assert_round_trip(tokenizer, text)
    assert tokenizer.vocab_size == len(set(text)) == len(set(tokenizer.encode(tokenizer.characters)))


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_gpt2_brings_texts_back_and_agrees_with_published_ids() -> None:
    tokenizer = GPT2Tokenizer()
    for text in ("", "Hello world", "naïve 😀 \n\n  tabs\tand 1234 numbers", "it's <|endoftext|> here", "\x00\x7f"):
        assert_round_trip(tokenizer, text)
    assert tokenizer.encode("Hello world<|endoftext|>") == [15496, 995, tokenizer.end_of_text]


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_gpt2_from_files_beside_a_checkpoint_equals_the_downloaded_one(tmp_path: Path) -> None:
    write_gpt2_files(tmp_path)
    text = "The quick brown fox, 42 times: naïve 😀<|endoftext|>"
    tokenizer = load_tokenizer(tmp_path, vocab_size=50257)
    assert isinstance(tokenizer, GPT2Tokenizer)
    assert tokenizer.folder == tmp_path
    assert tokenizer.encode(text) == GPT2Tokenizer().encode(text)


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_gpt2_agrees_with_the_reference(tmp_path: Path) -> None:
    from transformers import GPT2TokenizerFast

    write_gpt2_files(tmp_path)
    reference = GPT2TokenizerFast(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    tokenizer = GPT2Tokenizer(tmp_path)
    for text in (
        "def f(x):\n    return x ** 2\n",
        "  leading spaces",
        "naïve 😀 é",
        "I'll we've it's 'quoted'",
        "\n\n\n",
    ):
        assert tokenizer.encode(text) == reference.encode(text)


def write_gpt2_files(folder: Path) -> None:
    """Write GPT-2's vocabulary as its checkpoints hold it: the printable stand-ins for bytes, and the merges."""
    ranks = GPT2Tokenizer()._encoding._mergeable_ranks
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte not in (32, 173)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}

    def written(token: bytes) -> str:
        return "".join(stand_ins[byte] for byte in token)

    vocabulary = {written(token): rank for token, rank in ranks.items()} | {"<|endoftext|>": len(ranks)}
    merges = [halves(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{written(left)} {written(right)}" for left, right in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that were merged last: what is left of a token when only earlier merges are applied."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        first = pairs.index(min(pairs))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]


def test_a_character_split_over_tokens_appears_once_it_is_complete() -> None:
    pieces = list(ByteTokenizer().decode_stream("é".encode()))
    assert pieces == ["", "é", ""]


def test_bytes_that_are_no_text_become_the_replacement_character() -> None:
    assert ByteTokenizer().decode([0xFF, 65]) == "\N{REPLACEMENT CHARACTER}A"
    assert "".join(ByteTokenizer().decode_stream([65, 0xC3])) == "A\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("abc"), GPT2Tokenizer()])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    for token_id in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token id {token_id} .* 0 to {tokenizer.vocab_size - 1}"):
            tokenizer.decode([token_id])


def test_characters_outside_the_alphabet_are_named() -> None:
    with pytest.raises(ValueError, match="3 characters: 'xz'"):
        CharTokenizer("abc").encode("azbx")
    with pytest.raises(ValueError, match="at least one character"):
        CharTokenizer("")


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("héllo wörld\n"), GPT2Tokenizer()])
def test_a_saved_tokenizer_is_loaded_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path, tokenizer.vocab_size)
    assert type(loaded) is type(tokenizer)
    assert loaded.description() == tokenizer.description()


def test_a_vocabulary_padded_to_a_round_number_still_finds_gpt2(tmp_path: Path) -> None:
    assert isinstance(load_tokenizer(tmp_path, 50304), GPT2Tokenizer)


@pytest.mark.parametrize(
    ("content", "vocab_size", "message"),
    [
        (None, 1000, "vocabulary of 1000 tokens and no tokenizer"),
        ('{"tokenizer_class": "CharTokenizer"}', 10, "no characters"),
        ('{"tokenizer_class": "ByteTokenizer"}', 100, "256 tokens, but the model only 100"),
        ("{broken", 256, "cannot be read as JSON"),
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
    with pytest.raises(CheckpointError, match="do not hold a byte-level BPE"):
        GPT2Tokenizer(tmp_path).encode("text")
