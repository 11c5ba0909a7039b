"""Text to token ids and back, behind one interface: GPT-2's BPE, plain bytes, characters, or a checkpoint's own."""

import codecs
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.atomic import atomic_update, reading
from allformers.checkpoints.hub import read_json, resolve_checkpoint

if TYPE_CHECKING:
    import tiktoken


class Tokenizer(ABC):
    """Base class of tokenizers: text to token ids and back.

    Attributes:
        vocab_size: ids run from 0 to one less than this.
        eos_token_id: the id of the token that ends a document (end of sequence), or None if there is none.
        mask_token_id: the id that stands in place of a token that the model has to fill in, or None.
    """

    vocab_size: int
    eos_token_id: int | None = None
    mask_token_id: int | None = None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The token ids of a text."""

    def encode_part(self, text: str) -> list[int]:
        """The token ids of a part of a text, without the special tokens of `special_ids`."""
        return self.encode(text)

    def special_ids(self) -> tuple[list[int], list[int]]:
        """The ids of the special tokens that `encode` puts before and after a text, such as [CLS] and [SEP]."""
        return [], []

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for. A character of several bytes may be spread over several tokens.

        Raises:
            ValueError: the id is not in the vocabulary.
        """

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """The contents of `tokenizer_config.json`, from which `load_tokenizer` makes this tokenizer again."""

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids. Bytes that are not UTF-8 become the replacement character."""
        return b"".join(map(self.token_bytes, token_ids)).decode(errors="replace")

    def decode_stream(self, token_ids: Iterable[int]) -> Iterator[str]:
        """The text of token ids as they come: each piece as soon as its characters are complete."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in token_ids:
            yield decoder.decode(self.token_bytes(token_id))
        yield decoder.decode(b"", final=True)

    def save(self, folder: str | Path) -> None:
        """Save the tokenizer beside a checkpoint's weights, in the place of another one's files.

        Raises:
            OSError: the folder cannot be written to. Then nothing has changed.
        """
        with atomic_update(folder) as draft:
            self.write_files(draft)

    def write_files(self, draft: Path) -> None:
        """Write `tokenizer_config.json`, and what else the tokenizer is made from, into a draft."""
        content = json.dumps(self.to_config(), indent=2, ensure_ascii=False)
        (draft / "tokenizer_config.json").write_text(content + "\n", encoding="utf-8")

    def _check_token_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is not in the vocabulary: ids run from 0 to {self.vocab_size - 1}")


class ByteTokenizer(Tokenizer):
    """Each byte of UTF-8 is a token: nothing to learn, nothing to download, no text that it cannot write.

    >>> ByteTokenizer().encode("né")
    [110, 195, 169]
    """

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """The text's UTF-8 bytes."""
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        """The byte itself."""
        self._check_token_id(token_id)
        return bytes([token_id])

    def to_config(self) -> dict[str, Any]:
        """The name of its class; it has no settings."""
        return {"tokenizer_class": "ByteTokenizer"}


class CharTokenizer(Tokenizer):
    """Each character of a fixed alphabet is a token, in sorted order: the smallest vocabulary for one text.

    >>> CharTokenizer("hello").encode("hole")
    [1, 3, 2, 0]

    Args:
        characters: the alphabet; repetitions do not matter, so a whole text will do.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, characters: str) -> None:
        if not characters:
            raise ValueError("an alphabet needs at least one character")
        self.characters = "".join(sorted(set(characters)))
        self.vocab_size = len(self.characters)
        self._ids = {character: token_id for token_id, character in enumerate(self.characters)}

    def encode(self, text: str) -> list[int]:
        """The place of each character in the alphabet.

        Raises:
            ValueError: a character is not in the alphabet.
        """
        unknown = sorted(set(text) - set(self._ids))
        if unknown:
            raise ValueError(f"not in this tokenizer's alphabet of {self.vocab_size} characters: {''.join(unknown)!r}")
        return [self._ids[character] for character in text]

    def token_bytes(self, token_id: int) -> bytes:
        """The character, in UTF-8."""
        self._check_token_id(token_id)
        return self.characters[token_id].encode()

    def to_config(self) -> dict[str, Any]:
        """The name of its class, and its alphabet."""
        return {"tokenizer_class": "CharTokenizer", "characters": self.characters}


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-level BPE: 256 bytes, 50,000 pieces learned from web text, and `<|endoftext|>`.

    Frequent words are one token, and since every byte is a token any text can be written. `<|endoftext|>` in a text is
    read as the token. The merging is tiktoken's; it downloads the vocabulary once, and keeps it where
    `TIKTOKEN_CACHE_DIR` says.

    Source: the GPT-2 paper, section 2.2; Sennrich et al. 2015, arXiv:1508.07909.

    Args:
        folder: the folder of `vocab.json` and `merges.txt`, as in GPT-2's checkpoints; then nothing is downloaded.
    """

    vocab_size = 50257
    eos_token_id = 50256

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = folder

    @cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        import tiktoken
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks
        from tiktoken_ext.openai_public import r50k_pat_str

        if self.folder is not None:
            merges, vocabulary = Path(self.folder) / "merges.txt", Path(self.folder) / "vocab.json"
            try:
                ranks = data_gym_to_mergeable_bpe_ranks(str(merges), str(vocabulary))
            except (OSError, ValueError, AssertionError, KeyError, IndexError) as error:
                raise CheckpointError(f"{merges} and {vocabulary} do not hold a byte-level BPE: {error}") from error
            if len(ranks) != self.eos_token_id:
                raise CheckpointError(f"{vocabulary} is not GPT-2's: it has {len(ranks)} tokens besides <|endoftext|>")
            special = {"<|endoftext|>": self.eos_token_id}
            return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)
        try:
            return tiktoken.get_encoding("gpt2")
        except Exception as error:  # tiktoken lets whatever its HTTP client raises through
            raise CheckpointError(
                "GPT-2's vocabulary is not on this machine and cannot be downloaded. Set TIKTOKEN_CACHE_DIR to a "
                "folder that has it, or use a checkpoint with vocab.json and merges.txt beside the weights"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Split into words, then join neighbours in the order in which their union was learned."""
        return self._encoding.encode(text, allowed_special="all")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that were joined to this token."""
        self._check_token_id(token_id)
        return self._encoding.decode_single_token_bytes(token_id)

    def to_config(self) -> dict[str, Any]:
        """The name of its class; it has no settings."""
        return {"tokenizer_class": "GPT2Tokenizer"}

    def write_files(self, draft: Path) -> None:
        """Write `tokenizer_config.json`, and copy the vocabulary if it was read from a folder."""
        super().write_files(draft)
        if self.folder is not None:
            for name in ("vocab.json", "merges.txt"):
                shutil.copyfile(Path(self.folder) / name, draft / name)


class JsonTokenizer(Tokenizer):
    """The tokenizer in a checkpoint's `tokenizer.json`, as Llama, Mistral, Qwen, Gemma and most others have one.

    The library `tokenizers`, from those who made the format, splits the text. Two ways of writing bytes as tokens are
    known: that of GPT-2, where each byte is a letter, and that of SentencePiece, where a space is `▁` and a byte that
    is no letter is `<0x0A>`.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        from tokenizers import Tokenizer as Backend

        self.path = Path(path)
        try:
            self.backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises nothing more particular
            raise CheckpointError(f"{path} is not a tokenizer that can be read: {error}") from error
        # Files keep the settings of training, which would cut a long text without a word.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.vocab_size = self.backend.get_vocab_size(with_added_tokens=True)
        self.byte_level = "ByteLevel" in json.dumps(read_json(self.path).get("decoder"))
        added = self.backend.get_added_tokens_decoder()
        self.special_tokens = {token_id: token.content for token_id, token in added.items() if token.special}
        self.eos_token_id = self._first_id("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
        self.mask_token_id = self._first_id("[MASK]", "<mask>")

    def _first_id(self, *texts: str) -> int | None:
        """The id of the first of these tokens that the vocabulary has; None if it has none."""
        return next((one for text in texts if (one := self.backend.token_to_id(text)) is not None), None)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, with what the checkpoint wants before and after it, such as a beginning of text."""
        return list(self.backend.encode(text).ids)

    def encode_part(self, text: str) -> list[int]:
        """The token ids of a part of a text, without special tokens before and after it."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def special_ids(self) -> tuple[list[int], list[int]]:
        """The ids of the special tokens that `encode` puts before and after a text, found by encoding one token."""
        encoding = self.backend.encode(next(iter(self.special_tokens.values()), "a"))
        own = [index for index, is_added in enumerate(encoding.special_tokens_mask) if not is_added]
        return (encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]) if own else (encoding.ids, [])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; special tokens stand for their names."""
        piece = self.backend.id_to_token(token_id) if token_id >= 0 else None
        if piece is None:
            raise ValueError(f"{token_id} is not a token id: they run from 0 to {self.vocab_size - 1}")
        if token_id in self.special_tokens:
            return piece.encode()
        if self.byte_level:
            return (
                bytes(_UNICODE_TO_BYTE[letter] for letter in piece)
                if set(piece) <= set(_UNICODE_TO_BYTE)
                else piece.encode()
            )
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    def to_config(self) -> dict[str, Any]:
        """The name of the class that transformers has for such a file."""
        return {"tokenizer_class": "PreTrainedTokenizerFast"}

    def write_files(self, draft: Path) -> None:
        """Write `tokenizer_config.json`, and copy the file."""
        super().write_files(draft)
        shutil.copyfile(self.path, draft / "tokenizer.json")


def _unicode_to_byte() -> dict[str, int]:
    """The byte of each letter in GPT-2's files: a printable byte is its own letter, others have those from 256 on.

    The reverse of `bytes_to_unicode` in GPT-2's code.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_UNICODE_TO_BYTE = _unicode_to_byte()

TOKENIZER_CLASSES: dict[str, type[ByteTokenizer] | type[GPT2Tokenizer]] = {
    "bytes": ByteTokenizer,
    "gpt2": GPT2Tokenizer,
}
"""The tokenizers that need no data of their own, by the names that the command line uses."""


def load_tokenizer(name: str | Path, vocab_size: int) -> Tokenizer:
    """The tokenizer that belongs to a checkpoint.

    It is the one that `tokenizer_config.json` names if that is one of ours, else what `tokenizer.json` describes, else
    GPT-2's if the vocabulary lies beside the weights or has its size, else bytes if there are as many as bytes.

    Args:
        name: the checkpoint: a folder, or a name on the hub.
        vocab_size: of the model. It may be larger than the tokenizer's (some pad it to a round number).

    Raises:
        CheckpointError: none of them fits.
    """
    with reading(name):
        return _load_tokenizer(name, vocab_size)


def _load_tokenizer(name: str | Path, vocab_size: int) -> Tokenizer:
    """The tokenizer that a checkpoint's files describe; see `load_tokenizer`."""
    resolve_file = resolve_checkpoint(name)
    path = resolve_file("tokenizer_config.json")
    tokenizer_config = {} if path is None else read_json(path)
    tokenizer_class = tokenizer_config.get("tokenizer_class")
    tokenizer: Tokenizer
    if tokenizer_class == "ByteTokenizer":
        tokenizer = ByteTokenizer()
    elif tokenizer_class == "CharTokenizer":
        characters = tokenizer_config.get("characters")
        if not isinstance(characters, str) or not characters:
            raise CheckpointError(f"{path} has no characters, which a CharTokenizer needs")
        tokenizer = CharTokenizer(characters)
    elif (json_file := resolve_file("tokenizer.json")) is not None:
        tokenizer = JsonTokenizer(json_file)
    elif vocab_size >= GPT2Tokenizer.vocab_size and (files := _gpt2_files(resolve_file)):
        tokenizer = GPT2Tokenizer(files)
    elif 0 <= vocab_size - GPT2Tokenizer.vocab_size < 128:
        tokenizer = GPT2Tokenizer()
    elif vocab_size == ByteTokenizer.vocab_size:
        tokenizer = ByteTokenizer()
    else:
        raise CheckpointError(
            f"{name} has a vocabulary of {vocab_size} tokens and no tokenizer known here: put its tokenizer.json "
            "beside the weights"
        )
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{name}: a {type(tokenizer).__name__} has {tokenizer.vocab_size} tokens, but the model only {vocab_size}"
        )
    return tokenizer


def _gpt2_files(resolve_file: Callable[[str], Path | None]) -> Path | None:
    """The folder that holds both files of a byte-level BPE, if the checkpoint has them."""
    paths: Sequence[Path | None] = (resolve_file("vocab.json"), resolve_file("merges.txt"))
    return paths[0].parent if paths[0] and paths[1] and paths[0].parent == paths[1].parent else None
