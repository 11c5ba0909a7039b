"""Text to token ids and back, behind one interface: GPT-2's BPE, plain bytes, characters, or a checkpoint's own."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.atomic import atomic_update, reading
from allformers.checkpoints.hub import resolve_checkpoint
from allformers.inputs.tokenizer_files import (
    ResolveFile,
    end_of_text,
    library_errors,
    optional_file,
    read_backend,
    read_object,
    read_settings,
    token_text,
)

if TYPE_CHECKING:
    import tiktoken


class Tokenizer(ABC):
    """Base class of tokenizers: text to token ids and back.

    Attributes:
        vocab_size: ids run from 0 to one less than this. Some of them may be no token.
        eos_token_ids: the ids of the tokens that end a text (end of sequence); empty if there is none.
        mask_token_id: the id that stands in place of a token that the model has to fill in, or None.
    """

    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    mask_token_id: int | None = None

    @property
    def eos_token_id(self) -> int | None:
        """The first of `eos_token_ids`, which stands behind each document of a corpus; None if there is none."""
        return self.eos_token_ids[0] if self.eos_token_ids else None

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
            ValueError: the id is no token.
        """

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """The contents of `tokenizer_config.json`, from which `load_tokenizer` makes this tokenizer again."""

    def is_token(self, token_id: int) -> bool:
        """True if the id stands for a token. Vocabularies have gaps, and models rows that no token needs."""
        return 0 <= token_id < self.vocab_size

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids. Bytes that are not UTF-8 become the replacement character.

        Ids without a token are left out: a model with more rows than its tokenizer has tokens may write one.

        Raises:
            ValueError: an id is negative.
        """
        return b"".join(map(self.token_bytes, self._tokens_among(token_ids))).decode(errors="replace")

    def decode_stream(self, token_ids: Iterable[int], after: Sequence[int] = ()) -> Iterator[str]:
        """The text of token ids as they come: each piece as soon as its characters are complete.

        The pieces put together are the text that `decode` gives.

        Args:
            token_ids: the token ids.
            after: token ids that come before them, such as a prompt's; their text is left out. A token may stand for
                another text behind others: the first of a text loses its space.
        """
        window = self._tokens_among(after)
        num_given = len(self.decode(window))  # characters of the window's text that are given already
        for token_id in token_ids:
            window += self._tokens_among([token_id])
            text = self._final_text(window)
            yield text[num_given:]
            num_given = max(num_given, len(text))
            if len(window) > 64 and text == self.decode(window):  # forget what is long ago, or each token costs more
                recent = window[-16:]
                recent_text = self.decode(recent)
                if recent_text and recent_text[0] != "\N{REPLACEMENT CHARACTER}" and text.endswith(recent_text):
                    window, num_given = recent, len(recent_text)
        yield self.decode(window)[num_given:]

    def _final_text(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, without an end that later tokens may change: bytes that are no character yet."""
        return self.decode(token_ids).rstrip("\N{REPLACEMENT CHARACTER}")

    def _tokens_among(self, token_ids: Iterable[int]) -> list[int]:
        """The ids that stand for a token."""
        token_ids = list(token_ids)
        if any(token_id < 0 for token_id in token_ids):
            raise ValueError(
                f"token id {min(token_ids)} is not in the vocabulary: ids run from 0 to {self.vocab_size - 1}"
            )
        return [token_id for token_id in token_ids if self.is_token(token_id)]

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
        if not self.is_token(token_id):
            raise ValueError(f"token id {token_id} is not in the vocabulary: ids run from 0 to {self.vocab_size - 1}")


def require_unicode(text: str) -> None:
    """Refuse a text with surrogates: Python has them for bytes of a command line that are not UTF-8.

    Raises:
        ValueError: with the place of the first one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text is not UTF-8: character {error.start} is {text[error.start]!r}, which no text can hold"
        ) from error


class ByteTokenizer(Tokenizer):
    """Each byte of UTF-8 is a token: nothing to learn, nothing to download, no text that it cannot write.

    >>> ByteTokenizer().encode("né")
    [110, 195, 169]
    """

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """The text's UTF-8 bytes."""
        require_unicode(text)
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
    read as the token. The merging is tiktoken's; it downloads the published vocabulary once, compares its SHA-256 and
    keeps it where `TIKTOKEN_CACHE_DIR` says. The files of a checkpoint are read by `JsonTokenizer`.

    Source: the GPT-2 paper, section 2.2; Sennrich et al. 2015, arXiv:1508.07909.
    """

    vocab_size = 50257
    eos_token_ids = (50256,)

    @cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        import tiktoken

        try:
            return tiktoken.get_encoding("gpt2")
        except Exception as error:  # tiktoken lets whatever its HTTP client raises through
            raise CheckpointError(
                "GPT-2's vocabulary is not on this machine and cannot be downloaded. Set TIKTOKEN_CACHE_DIR to a "
                "folder that has it, or use a checkpoint with vocab.json and merges.txt beside the weights"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Split into words, then join neighbours in the order in which their union was learned."""
        require_unicode(text)
        return self._encoding.encode(text, allowed_special="all")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that were joined to this token."""
        self._check_token_id(token_id)
        return self._encoding.decode_single_token_bytes(token_id)

    def to_config(self) -> dict[str, Any]:
        """The name of its class; it has no settings."""
        return {"tokenizer_class": "GPT2Tokenizer"}


class JsonTokenizer(Tokenizer):
    """A checkpoint's own tokenizer: what its `tokenizer.json` describes, or an older file from which one can be made.

    The library `tokenizers`, from those who made the format, encodes and decodes; `allformers.inputs.tokenizer_files`
    reads the files.

    Args:
        path: the file.
        settings: the contents of `tokenizer_config.json`.
        num_rows: the number of tokens that the model has rows for, if it is known. The tokenizer may have added tokens
            beyond, which are refused in a text; no others.

    Raises:
        CheckpointError: the file cannot be read, or a token of the vocabulary has no row.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any] | None = None, num_rows: int | None = None
    ) -> None:
        self.path = Path(path)
        self.settings = dict(settings or {})
        self.backend = read_backend(self.path, self.settings)
        own = self.backend.get_vocab(with_added_tokens=False)
        added = self.backend.get_added_tokens_decoder()
        self.vocab_size = max([*own.values(), *added], default=-1) + 1
        if num_rows is not None and self.vocab_size > num_rows:
            beyond = [token for token, token_id in own.items() if token_id >= num_rows and token_id not in added]
            if beyond:
                raise CheckpointError(
                    f"{self.path}: the tokenizer has {self.vocab_size} tokens, but the model only {num_rows}: the id "
                    f"of {beyond[0]!r} is {own[beyond[0]]}"
                )
            self.vocab_size = num_rows
        decoder = "" if self.backend.decoder is None else str(self.backend.decoder.__getstate__())
        self._byte_level, self._byte_fallback = "ByteLevel" in decoder, "ByteFallback" in decoder
        model = type(self.backend.model).__name__
        self._clean_up = self.settings.get("clean_up_tokenization_spaces") is True and model != "BPE"
        self.special_tokens = {token_id: token.content for token_id, token in added.items() if token.special}
        special_ids = {token: token_id for token_id, token in self.special_tokens.items()}
        eos_token = token_text(self.settings.get("eos_token"))
        names = (eos_token,) if eos_token in special_ids else ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
        self.eos_token_ids = tuple(special_ids[name] for name in names if name in special_ids)[:1]
        self.mask_token_id = next((special_ids[name] for name in ("[MASK]", "<mask>") if name in special_ids), None)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, with what the checkpoint wants before and after it, such as a beginning of text.

        Raises:
            ValueError: the text cannot be encoded, or has a token that the model has no row for.
        """
        return self._encode(text, add_special_tokens=True)

    def encode_part(self, text: str) -> list[int]:
        """The token ids of a part of a text, without special tokens before and after it; errors as for `encode`."""
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        require_unicode(text)
        with library_errors(f"{self.path} cannot encode this text", ValueError):
            token_ids = list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        beyond = next((token_id for token_id in token_ids if token_id >= self.vocab_size), None)
        if beyond is not None:
            raise ValueError(
                f"the text has the token {self.backend.id_to_token(beyond)!r}, whose id is {beyond}; the model has "
                f"{self.vocab_size} rows, and none for it"
            )
        return token_ids

    def special_ids(self) -> tuple[list[int], list[int]]:
        """The ids of the special tokens that `encode` puts before and after a text, found by encoding one token."""
        with library_errors(f"{self.path} cannot encode a text"):
            encoding = self.backend.encode(next(iter(self.special_tokens.values()), "a"))
        own = [index for index, is_added in enumerate(encoding.special_tokens_mask) if not is_added]
        return (encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]) if own else (encoding.ids, [])

    def is_token(self, token_id: int) -> bool:
        """True if the vocabulary has the id, or an added token has it."""
        return 0 <= token_id < 2**32 and self.backend.id_to_token(token_id) is not None

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for by itself; special tokens stand for their names.

        Two ways of writing bytes as tokens are known: that of GPT-2, where each byte is a letter, and that of
        SentencePiece, where a space is `▁` and a byte that is no letter is `<0x0A>`.
        """
        self._check_token_id(token_id)
        piece = self.backend.id_to_token(token_id) or ""
        if token_id in self.special_tokens:
            return piece.encode()
        if self._byte_level:
            is_plain = set(piece) <= set(_UNICODE_TO_BYTE)
            return bytes(_UNICODE_TO_BYTE[letter] for letter in piece) if is_plain else piece.encode()
        if self._is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    def _is_byte(self, token_id: int) -> bool:
        """True if the token is one byte of a character that the vocabulary lacks, such as `<0x0A>`."""
        return self._byte_fallback and _BYTE.fullmatch(self.backend.id_to_token(token_id) or "") is not None

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids, as the library and transformers put it together; special tokens by their names.

        Raises:
            ValueError: an id is negative.
        """
        with library_errors(f"{self.path} cannot decode these token ids", ValueError):
            text = self.backend.decode(self._tokens_among(token_ids), skip_special_tokens=False)
        return _without_spaces_before_signs(text) if self._clean_up else text

    def _final_text(self, token_ids: Sequence[int]) -> str:
        """The text without an end that later tokens may change.

        One invalid byte makes its whole run of byte tokens invalid, so a run waits until it has ended. Where spaces are
        taken away before signs, a sign may still come.
        """
        end = len(token_ids)
        while end and self._is_byte(token_ids[end - 1]):
            end -= 1
        text = super()._final_text(token_ids[:end])
        return text[:-8] if self._clean_up else text

    def to_config(self) -> dict[str, Any]:
        """The name of the class that transformers has for such a file, and the settings that the file lacks."""
        kept = ("bos_token", "clean_up_tokenization_spaces")
        settings = {name: self.settings[name] for name in kept if name in self.settings}
        if self.eos_token_id is not None:
            settings["eos_token"] = self.backend.id_to_token(self.eos_token_id)
        return {"tokenizer_class": "PreTrainedTokenizerFast", **settings}

    def write_files(self, draft: Path) -> None:
        """Write `tokenizer_config.json`, and `tokenizer.json`, whatever file the tokenizer was read from."""
        super().write_files(draft)
        self.backend.save(str(draft / "tokenizer.json"))


def _without_spaces_before_signs(text: str) -> str:
    """Take away the spaces that splitting into words has put before signs and contractions, as transformers does."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text


_BYTE = re.compile("<0x[0-9A-F]{2}>")


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


def load_tokenizer(name: str | Path, vocab_size: int, revision: str | None = None) -> Tokenizer:
    """The tokenizer that belongs to a checkpoint.

    It is the one that `tokenizer_config.json` names if that is one of ours, else what `tokenizer.json` or one of the
    older files describes (`allformers.inputs.tokenizer_files`), else GPT-2's if the vocabulary has its size, else bytes
    if there are as many as bytes. The tokens that end a text are those of `generation_config.json`, or else
    `config.json`, or else `tokenizer_config.json`; if none of them says, a special token that is called so.

    Args:
        name: the checkpoint: a folder, or a name on the hub.
        vocab_size: of the model. It may be larger than the tokenizer's (some pad it to a round number), and added
            tokens may lie beyond it (some share the tokenizer of a larger model).
        revision: a branch, tag or commit on the hub.

    Raises:
        CheckpointError: none of them fits.
    """
    with reading(name):
        return _load_tokenizer(name, vocab_size, revision)


def _load_tokenizer(name: str | Path, vocab_size: int, revision: str | None) -> Tokenizer:
    """The tokenizer that a checkpoint's files describe; see `load_tokenizer`."""
    resolve_file = resolve_checkpoint(name, revision)
    settings = read_settings(resolve_file)
    tokenizer_class = settings.get("tokenizer_class")
    tokenizer: Tokenizer
    if tokenizer_class == "ByteTokenizer":
        tokenizer = ByteTokenizer()
    elif tokenizer_class == "CharTokenizer":
        characters = settings.get("characters")
        if not isinstance(characters, str) or not characters:
            raise CheckpointError(f"{name}: tokenizer_config.json has no characters, which a CharTokenizer needs")
        tokenizer = CharTokenizer(characters)
    elif (path := _tokenizer_file(resolve_file)) is not None:
        model_type = str(read_object(optional_file(resolve_file, "config.json")).get("model_type"))
        settings.setdefault("tokenizer_class", "Qwen2Tokenizer" if model_type.startswith("qwen") else None)
        tokenizer = JsonTokenizer(path, settings, vocab_size)
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
    tokenizer.eos_token_ids = end_of_text(resolve_file, vocab_size) or tokenizer.eos_token_ids
    return tokenizer


def _tokenizer_file(resolve_file: ResolveFile) -> Path | None:
    """The file that describes a checkpoint's tokenizer, if it has one."""
    if (path := resolve_file("tokenizer.json")) is not None:
        return path
    vocab, merges = (optional_file(resolve_file, name) for name in ("vocab.json", "merges.txt"))
    if vocab is not None and merges is not None and vocab.parent == merges.parent:
        return vocab
    others = ("vocab.txt", "tokenizer.model", "spiece.model", "source.spm")
    return next((path for name in others if (path := optional_file(resolve_file, name)) is not None), None)
