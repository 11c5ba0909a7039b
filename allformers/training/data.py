"""Corpora, their tokenisation to disk, and the batches cut from them.

`prepare` turns a text into a folder: `tokens.bin` is all its token ids, one after the other, two bytes each (four if
the vocabulary needs them); `data.json` says what they are; `tokenizer_config.json` how to read them. `open_tokens` maps
that file into memory: only what a batch touches is ever read, so a corpus may be larger than memory.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int, Integer
from torch import Tensor

from allformers.checkpoints.atomic import atomic_folder, sha256
from allformers.checkpoints.hub import read_json
from allformers.inputs.tokenizers import TOKENIZER_CLASSES, CharTokenizer, Tokenizer, load_tokenizer
from allformers.nn.shapes import checked

TOKENIZERS = ("bytes", "characters", "gpt2")
"""Tokenizers by name: bytes, the characters that occur in the text, or GPT-2's BPE."""

HELLO_WORLD = "Hello, world! I am a transformer, and this is the one sentence that I know by heart."

_CHUNK = 2**22
"""Characters that are read at once."""

_CONTEXT = 256
"""Characters on either side of a cut for which the tokenizer must show that the cut changes nothing."""


class Remote(NamedTuple):
    """A corpus to download: its address, and the SHA-256 that it must have."""

    url: str
    sha256: str


def python_documentation() -> str:
    """Return Python's own documentation of its syntax and semantics, some 465,000 characters.

    It comes with every CPython (`pydoc_data.topics`, what `help("for")` shows), so nothing has to be fetched. Its text
    differs a little from version to version; the SHA-256 in `data.json` tells.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


CORPORA: dict[str, Callable[[], str] | Remote] = {
    "hello-world": lambda: HELLO_WORLD,
    "python-docs": python_documentation,
    "tiny-shakespeare": Remote(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}
"""The corpora that have a name. Tiny Shakespeare is 40,000 lines of his plays, by Andrej Karpathy for char-rnn."""


class Tokens(NamedTuple):
    """A tokenised text, mapped from disk.

    Attributes:
        ids: its token ids.
        tokenizer: the tokenizer that made them.
        num_bytes: bytes of the text, in UTF-8.
        text_sha256: SHA-256 of those bytes, to tell whether two runs read the same.
        tokens_sha256: SHA-256 of `tokens.bin`.
    """

    ids: Integer[Tensor, "text"]
    tokenizer: Tokenizer
    num_bytes: int
    text_sha256: str
    tokens_sha256: str


def prepare(
    source: str,
    folder: str | Path,
    tokenizer: str | Tokenizer = "bytes",
    *,
    file: str | Path | None = None,
    glob: str = "**/*",
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Tokens:
    """Tokenise a text and write the token ids to a new folder.

    Args:
        source: the name of a corpus (`CORPORA`), a text file, a folder of text files, or "-" for standard input. The
            files of a folder are taken in the order of their paths; where the tokenizer has an end-of-text token, it
            stands after each.
        folder: where to write; it must not exist, or be empty.
        tokenizer: one of `TOKENIZERS`, or one that is there already, such as a checkpoint's.
        file: where a corpus that would have to be fetched lies already; its SHA-256 is checked all the same.
        glob: which files of a folder to take; hidden ones are never taken.
        on_progress: called now and then with the bytes that are done and the bytes of the whole text.

    Raises:
        ValueError: there is no such source, it is not UTF-8 text, holds nothing, cannot be fetched, or does not have
            the expected SHA-256.
        FileExistsError: the folder holds something already.
    """
    if isinstance(tokenizer, str) and tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer must be one of {', '.join(TOKENIZERS)}, not {tokenizer!r}")
    with tempfile.TemporaryDirectory() as scratch, atomic_folder(Path(folder)) as draft:
        documents = _documents(source, file, glob, Path(scratch))
        total = sum(document.stat().st_size for document in documents)
        if isinstance(tokenizer, str):
            tokenizer = _make_tokenizer(tokenizer, documents)
        text_hash, tokens_hash = hashlib.sha256(), hashlib.sha256()
        done = count = 0
        with (draft / "tokens.bin").open("wb") as output:
            for ids, text in _encode(documents, tokenizer):
                packed = np.asarray(ids, dtype=_dtype(tokenizer.vocab_size)).tobytes()
                output.write(packed)
                tokens_hash.update(packed)
                text_hash.update(text)
                count += len(ids)
                done += len(text)
                on_progress(done, total)
        if not done:
            raise ValueError(f"{source} holds no text to train on")
        description = {
            "source": source if source in CORPORA or source == "-" else Path(source).name,
            "files": len(documents),
            "bytes": done,
            "text_sha256": text_hash.hexdigest(),
            "tokens": count,
            "vocab_size": tokenizer.vocab_size,
            "dtype": _dtype(tokenizer.vocab_size).name,
            "tokens_sha256": tokens_hash.hexdigest(),
        }
        (draft / "data.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        tokenizer.write_files(draft)
    return open_tokens(folder)


def open_tokens(folder: str | Path, *, verify: bool = False) -> Tokens:
    """Map a folder that `prepare` wrote into memory.

    Args:
        folder: the folder.
        verify: True reads all tokens and compares their SHA-256.

    Raises:
        ValueError: the folder holds no such data, or the file is not what `data.json` says.
    """
    path = Path(folder) / "tokens.bin"
    description = read_json(path.with_name("data.json"))
    try:
        count, vocab_size, num_bytes = (int(description[name]) for name in ("tokens", "vocab_size", "bytes"))
        text_sha256, tokens_sha256 = str(description["text_sha256"]), str(description["tokens_sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}/data.json does not describe prepared data: {error!r}; prepare it again") from error
    dtype = _dtype(vocab_size)
    expected = count * dtype.itemsize
    found = path.stat().st_size if path.is_file() else 0
    if found != expected:
        raise ValueError(f"{path} should have {expected:,} bytes but has {found:,}: prepare the data again")
    if verify and sha256(path) != tokens_sha256:
        raise ValueError(f"{path} does not have the SHA-256 that data.json gives: prepare the data again")
    ids = torch.from_file(str(path), shared=False, size=count, dtype=getattr(torch, dtype.name))
    return Tokens(ids, load_tokenizer(folder, vocab_size), num_bytes, text_sha256, tokens_sha256)


def is_prepared(source: str | Path) -> bool:
    """True if this is a folder that `prepare` wrote."""
    return (Path(source) / "data.json").is_file()


def _dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    return np.dtype(np.uint16) if vocab_size <= 2**16 else np.dtype(np.uint32)


def _documents(source: str, file: str | Path | None, glob: str, scratch: Path) -> list[Path]:
    """List the files of a source; a text that is in no file yet is written to one in `scratch`."""
    made = scratch / "text.txt"
    if source in CORPORA:
        corpus = CORPORA[source]
        if isinstance(corpus, Remote):
            return [_fetch(source, corpus, file)]
        made.write_text(corpus(), encoding="utf-8", newline="")
    elif source == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise ValueError("there is nothing to read: - stands for standard input, so pipe a text into the command")
        with made.open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
    elif Path(source).is_dir():
        found = [path for path in sorted(Path(source).glob(glob)) if path.is_file()]
        found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(source).parts)]
        if not found:
            raise ValueError(f"{source} holds no file that matches {glob}")
        return found
    elif Path(source).is_file():
        return [Path(source)]
    else:
        raise ValueError(f"there is no corpus, file or folder {source}; the corpora are: {', '.join(CORPORA)}")
    return [made]


def _fetch(name: str, corpus: Remote, file: str | Path | None) -> Path:
    """Find a named corpus at `file` or in the cache, or download it; its SHA-256 is checked in any case."""
    if file is not None:
        path = Path(file)
        if not path.is_file():
            raise ValueError(f"there is no file {file}")
        if sha256(path) != corpus.sha256:
            raise ValueError(
                f"{file} is not {name}: its SHA-256 is {sha256(path)}, expected {corpus.sha256}. "
                "To train on it as a text of its own, give it as the source"
            )
        return path
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    try:
        return Path(pooch.retrieve(corpus.url, f"sha256:{corpus.sha256}", f"{name}.txt", pooch.os_cache("allformers")))
    except (requests.RequestException, OSError) as error:
        raise ValueError(
            f"{name} could not be fetched ({type(error).__name__}). Fetch {corpus.url} where there is a network, and "
            "say where the file is with --file"
        ) from error
    except ValueError as error:  # the SHA-256 is wrong: somebody changed the file, here or there
        raise ValueError(f"{name} was fetched from {corpus.url}, but not with the SHA-256 {corpus.sha256}") from error


def _make_tokenizer(name: str, documents: Iterable[Path]) -> Tokenizer:
    if name != "characters":
        return TOKENIZER_CLASSES[name]()
    alphabet: set[str] = set()
    for document in documents:
        for chunk in _chunks(document):
            alphabet.update(chunk)
    if not alphabet:
        raise ValueError("the text is empty: it has no characters to train on")
    return CharTokenizer("".join(alphabet))


def _encode(documents: Iterable[Path], tokenizer: Tokenizer) -> Iterator[tuple[list[int], bytes]]:
    """Tokenise documents in parts; yield each part's token ids and the bytes that they were made from.

    The ids are those of the whole document. Special tokens stand once a document: those that the tokenizer puts around
    a text, and the end-of-text token.
    """
    before, after = tokenizer.special_ids()
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in after:
        after = [*after, tokenizer.eos_token_id]
    for document in documents:
        yield before, b""
        rest = ""
        for chunk in _chunks(document):
            rest += chunk
            end, start = _find_cut(rest, tokenizer)
            if end:
                yield tokenizer.encode_part(rest[:end]), rest[:start].encode()
                rest = rest[start:]
        if rest:
            yield tokenizer.encode_part(rest), rest.encode()
        yield after, b""


def _chunks(document: Path) -> Iterator[str]:
    """Read a file in chunks, its line ends unchanged."""
    try:
        with document.open(encoding="utf-8", newline="") as text:
            yield from iter(partial(text.read, _CHUNK), "")
    except UnicodeDecodeError as error:
        raise ValueError(f"{document} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise ValueError(f"{document} cannot be read: {error.strerror}") from error


def _find_cut(text: str, tokenizer: Tokenizer) -> tuple[int, int]:
    """Find where a text can be encoded in two parts: the end of the first and the start of the second; 0 if nowhere.

    Candidates are places before white space that follows something else. The tokenizer itself decides: the text around
    the place must have the same ids in one part and in two. Tokenizers that put a space in front of each text pass if
    the space at the cut is left out. Some pass nowhere, and read each document as a whole.
    """
    for cut in range(len(text) - _CONTEXT, max(_CONTEXT, len(text) - 64 * _CONTEXT), -1):
        if text[cut].isspace() and not text[cut - 1].isspace():
            before, after = text[cut - _CONTEXT : cut], text[cut : cut + _CONTEXT]
            whole, first = tokenizer.encode_part(before + after), tokenizer.encode_part(before)
            for skipped in (0, 1) if text[cut] == " " else (0,):
                if first + tokenizer.encode_part(after[skipped:]) == whole:
                    return cut, cut + skipped
    return 0, 0


@checked
def split(
    tokens: Integer[Tensor, "text"], validation_fraction: float
) -> tuple[Integer[Tensor, "train_seq"], Integer[Tensor, "validation_seq"]]:
    """Split a text in two: the beginning to train on, the end for validation."""
    cut = round(len(tokens) * (1 - validation_fraction))
    return tokens[:cut], tokens[cut:]


@checked
def draw_batch(
    tokens: Integer[Tensor, "text"],
    batch_size: int,
    seq_length: int,
    generator: torch.Generator,
    rows: slice = slice(None),
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Draw a batch of random passages from a text: inputs, and targets that are the inputs moved on by one.

    The target at position s is token s + 1. The causal mask hides all later tokens from that position, so one pass
    trains on all positions.

    Args:
        tokens: the token ids of the text.
        batch_size: passages in the whole batch.
        seq_length: tokens that each passage predicts.
        generator: the random generator of the passages' starts: the same starts are drawn for any `rows`.
        rows: the rows of the batch to cut, when several processes share it.

    Raises:
        ValueError: the text is too short for one passage.
    """
    if len(tokens) <= seq_length:
        raise ValueError(
            f"a text of {len(tokens)} tokens is too short to cut passages of {seq_length} + 1 from it: give a longer "
            "text or a smaller seq_length"
        )
    starts = torch.randint(len(tokens) - seq_length, (batch_size,), generator=generator)[rows]
    offsets = torch.arange(seq_length + 1)
    passages = tokens[rearrange(starts, "batch -> batch 1") + rearrange(offsets, "seq -> 1 seq")].long()
    return passages[:, :-1], passages[:, 1:]
