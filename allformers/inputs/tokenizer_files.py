"""The tokenizer files of checkpoints, read into the library `tokenizers`.

| file | which checkpoints have it |
|---|---|
| `tokenizer.json` | nearly all: how a text is normalised, split, encoded and decoded, and the added tokens |
| `vocab.json`, `merges.txt` | the byte-level BPE of GPT-2 and Qwen, if they have no `tokenizer.json` |
| `vocab.txt` | BERT's WordPiece, likewise |
| `tokenizer.model`, `spiece.model`, `source.spm` | SentencePiece: the BPE of Llama 2, Mistral, Gemma; unigram models |

Beside any of them `tokenizer_config.json` names special tokens and may add tokens; older checkpoints have
`special_tokens_map.json` and `added_tokens.json` for that. All are read as transformers reads them, with one exception:
where `tokenizers` would number an added token anew, the number that the file gives is kept.
"""

import contextlib
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.hub import read_json
from allformers.messages import shown

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

ResolveFile = Callable[[str], Path | None]
"""From a file's name to its path, or to None if the checkpoint has no such file."""

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen splits a text into words: contractions, letters, single digits, signs, line ends, spaces."""


@contextlib.contextmanager
def library_errors(what: object, error_class: type[ValueError] = CheckpointError) -> Iterator[None]:
    """Turn whatever the library `tokenizers` raises into one error that names the file.

    A panic of its Rust code is not even an `Exception`.
    """
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise error_class(f"{what}: {type(error).__name__}: {error}") from error
        raise


def optional_file(resolve_file: ResolveFile, name: str) -> Path | None:
    """The path of a file that a checkpoint may lack; None too if there is no network and it is not in the cache."""
    try:
        return resolve_file(name)
    except CheckpointError:
        return None


def read_object(path: Path | None) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no file.

    Raises:
        CheckpointError: it is not JSON, not an object, or nested too deeply.
    """
    return {} if path is None else read_json(path)


def read_settings(resolve_file: ResolveFile) -> dict[str, Any]:
    """`tokenizer_config.json`, with the older files of special and added tokens brought into its form.

    Raises:
        CheckpointError: one of the files cannot be read.
    """
    settings = read_object(resolve_file("tokenizer_config.json"))
    if "added_tokens_decoder" in settings:
        return settings
    settings |= read_object(optional_file(resolve_file, "special_tokens_map.json"))
    path = optional_file(resolve_file, "added_tokens.json")
    special = {token.content for token in _special_tokens(settings)}
    settings["added_tokens_decoder"] = {
        token_id: {"content": token, "special": token in special, "normalized": token not in special}
        for token, token_id in read_object(path).items()
    }
    return settings


def token_text(token: Any) -> str | None:
    """The text of a token in `tokenizer_config.json`, a string or an object with its content; None if neither."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) and content else None


def read_backend(path: Path, settings: Mapping[str, Any]) -> "Backend":
    """A tokenizer of the library, from one of the files of the table above.

    Truncation and padding, which `tokenizer.json` keeps from its training, are switched off: a text is encoded whole.

    Raises:
        CheckpointError: the file is damaged, or what it describes cannot be built.
    """
    with library_errors(f"{path} is not a tokenizer that can be read"):
        if path.name == "vocab.json":
            backend = _byte_level_bpe(path, settings)
        elif path.name == "vocab.txt":
            backend = _wordpiece(path, settings)
        elif path.suffix in (".model", ".spm"):
            backend = _sentencepiece(path, settings)
        else:
            backend = _from_json(path)
        backend = _add_tokens(backend, path, settings)
        if path.name != "tokenizer.json" and {"add_bos_token", "add_eos_token"} & set(settings):
            _put_around(backend, settings, bool(settings.get("add_bos_token")), bool(settings.get("add_eos_token")))
        backend.no_truncation()
        backend.no_padding()
    return backend


def _from_json(path: Path) -> "Backend":
    """The tokenizer that `tokenizer.json` describes, each added token with the id that stands there."""
    from tokenizers import Tokenizer as Backend

    content = read_object(path)
    backend = Backend.from_file(str(path))
    wanted = {entry["id"]: entry["content"] for entry in content.get("added_tokens") or []}
    return _with_ids(backend, path, wanted)


def _add_tokens(backend: "Backend", path: Path, settings: Mapping[str, Any]) -> "Backend":
    """Add the tokens of `tokenizer_config.json` that the vocabulary lacks, and mark special ones as special."""
    from tokenizers import AddedToken

    added = {}
    for token_id, token in dict(settings.get("added_tokens_decoder") or {}).items():
        if not str(token_id).isdecimal() or token_text(token) is None:
            raise CheckpointError(
                f"{path}: an added token should be an id with its content, not {shown(token_id)}: {shown(token)}"
            )
        fields = {key: value for key, value in dict(token).items() if not key.startswith("_")}
        added[int(token_id)] = AddedToken(**fields)
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for _, token in sorted(added.items()) if token.content not in known])
    backend = _with_ids(backend, path, {token_id: token.content for token_id, token in added.items()})
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens([token for token in _special_tokens(settings) if token.content not in known])
    return backend


def _special_tokens(settings: Mapping[str, Any]) -> list["AddedToken"]:
    """The special tokens that `tokenizer_config.json` names, such as `eos_token`."""
    from tokenizers import AddedToken

    named = [token for name, token in settings.items() if name.endswith("_token")]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(name) or []
        named += more.values() if isinstance(more, Mapping) else more if isinstance(more, list) else []
    flags = ("lstrip", "rstrip", "single_word", "normalized")
    return [
        AddedToken(
            text,
            special=True,
            **({flag: token[flag] for flag in flags if flag in token} if isinstance(token, Mapping) else {}),
        )
        for token in named
        if (text := token_text(token)) is not None
    ]


def _with_ids(backend: "Backend", path: Path, wanted: Mapping[int, str]) -> "Backend":
    """The same tokenizer, with the added tokens at the ids that a file gives them.

    The library numbers added tokens one after the other, gaps or not. It leaves alone what the model's own vocabulary
    has; so a token that must have another number is written there.
    """
    from tokenizers import Tokenizer as Backend

    own = backend.get_vocab(with_added_tokens=False)
    misplaced = {
        token: token_id
        for token_id, token in wanted.items()
        if token not in own and backend.token_to_id(token) != token_id
    }
    if not misplaced:
        return backend
    content = json.loads(backend.to_str())
    vocab = content["model"]["vocab"]
    holders = {token_id: token for token, token_id in own.items()}
    for token, token_id in misplaced.items():
        if not isinstance(vocab, dict) or token_id in holders:
            raise CheckpointError(
                f"{path}: the added token {shown(token)} has the id {token_id}, which "
                + (
                    f"is that of {shown(holders[token_id])}"
                    if token_id in holders
                    else "leaves a gap in the vocabulary"
                )
            )
        vocab[token] = token_id
    for entry in content["added_tokens"]:
        entry["id"] = misplaced.get(entry["content"], entry["id"])
    content["added_tokens"].sort(key=lambda entry: entry["id"])
    return Backend.from_str(json.dumps(content))


def _put_around(backend: "Backend", settings: Mapping[str, Any], bos: bool, eos: bool) -> None:
    """Put a beginning or an end of text around each text, or neither."""
    from tokenizers import processors

    first = token_text(settings.get("bos_token")) if bos else None
    last = token_text(settings.get("eos_token")) if eos else None
    template = [*([first] if first else []), "$A", *([last] if last else [])]
    pair = [*template, *(f"{part}:1" for part in ("$B" if part == "$A" else part for part in template))]
    ids = [(token, backend.token_to_id(token)) for token in {first, last} if token]
    backend.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=ids)


def _byte_level_bpe(path: Path, settings: Mapping[str, Any]) -> "Backend":
    """GPT-2's form of BPE, or Qwen's: `vocab.json` has the ids, `merges.txt` the unions, the earliest first."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    family = str(settings.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if family not in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        raise CheckpointError(
            f"{path}: how a {family} splits a text is not in this file, and only GPT-2 and Qwen are known here: put "
            "its tokenizer.json beside the weights"
        )
    vocab, lines = read_object(path), path.with_name("merges.txt").read_text(encoding="utf-8").split("\n")
    lines = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    wrong = next((line for line in lines if line.count(" ") != 1), None)
    if wrong is not None:
        raise CheckpointError(f"{path.with_name('merges.txt')}: a line should have two parts, not {shown(wrong)}")
    backend = Backend(models.BPE(vocab, [(left, right) for left, right in (line.split(" ") for line in lines)]))
    prefix = bool(settings.get("add_prefix_space", False))
    if family == "Qwen2Tokenizer":
        backend.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
        bytes_as_letters = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_as_letters])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"] if "<|endoftext|>" in vocab else [])
    return backend


def _wordpiece(path: Path, settings: Mapping[str, Any]) -> "Backend":
    """BERT's tokenizer: `vocab.txt` has a token a line, and `tokenizer_config.json` says how a text is normalised."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    special = {name: token_text(settings.get(name)) or text for name, text in names.items()}
    special["mask_token"] = token_text(settings.get("mask_token")) or "[MASK]"
    lines = path.read_text(encoding="utf-8").split("\n")
    vocab = {line.rstrip("\r"): number for number, line in enumerate(lines[:-1] if not lines[-1] else lines)}
    missing = [special[name] for name in ("unk_token", "cls_token", "sep_token") if special[name] not in vocab]
    if missing:
        raise CheckpointError(f"{path} has {len(vocab)} tokens, and {', '.join(missing)} is none of them")
    backend = Backend(models.WordPiece(vocab, unk_token=special["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([token for token in special.values() if token in vocab])
    first, last = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=[first, "$A", last],
        pair=[first, "$A", last, "$B:1", f"{last}:1"],
        special_tokens=[(token, vocab[token]) for token in {first, last}],
    )
    return backend


NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Types of SentencePiece's pieces; 5 is unused, and 6 a byte."""


def _sentencepiece(path: Path, settings: Mapping[str, Any]) -> "Backend":
    """A SentencePiece model: BPE, or a unigram model, over a text whose spaces are written `▁`.

    The file is a message in the format of Protocol Buffers, of which this takes the pieces with their scores, and how a
    text is normalised. A BPE's merges are not written down: any two pieces whose union is a piece are merged, the union
    with the highest score first. Source: Kudo and Richardson 2018, arXiv:1808.06226.
    """
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    try:
        model = _message(path.read_bytes())
        pieces = [_message(piece) for piece in model[1]]
        trainer, normalizer = (_message(model[field][0]) if field in model else {} for field in (2, 3))
        texts = [piece[1][0].decode() for piece in pieces]
        scores = [struct.unpack("<f", piece[2][0])[0] if 2 in piece else 0.0 for piece in pieces]
        types = [piece[3][0] if 3 in piece else NORMAL for piece in pieces]
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(
            f"{path} is no model of SentencePiece; if it is one of tiktoken, put its tokenizer.json beside the weights"
        ) from error

    def option(message: Mapping[int, list[Any]], field: int, default: Any) -> Any:
        return message[field][-1] if field in message else default

    kind, byte_fallback, suffix = option(trainer, 3, 1), bool(option(trainer, 35, 0)), option(trainer, 24, 0)
    if kind not in (1, 2) or suffix:
        raise CheckpointError(
            f"{path} is a SentencePiece model of words or characters, or with spaces behind words; only BPE and "
            "unigram models with spaces before words are known here: put its tokenizer.json beside the weights"
        )
    unknown = next((number for number, one in enumerate(types) if one == UNKNOWN), None)
    user_defined = [text for text, one in zip(texts, types, strict=True) if one == USER_DEFINED]
    if kind == 1:
        backend = Backend(models.Unigram([*zip(texts, scores, strict=True)], unknown, byte_fallback))
    else:
        vocab = {text: number for number, text in enumerate(texts)}
        normal = {text for text, one in zip(texts, types, strict=True) if one == NORMAL}
        unions = sorted(
            (-scores[vocab[text]], vocab[text], text[:cut], text[cut:])
            for text in normal
            for cut in range(1, len(text))
            if text[:cut] in normal and text[cut:] in normal
        )
        backend = Backend(
            models.BPE(
                vocab,
                [(left, right) for *_, left, right in unions],
                unk_token=None if unknown is None else texts[unknown],
                fuse_unk=True,
                byte_fallback=byte_fallback,
                ignore_merges=bool(user_defined),
            )
        )
    charsmap, dummy_prefix, strip = option(normalizer, 2, b""), option(normalizer, 3, 1), option(normalizer, 4, 1)
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if strip:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Replace(" ", "▁"), *([normalizers.Prepend("▁")] if dummy_prefix else [])]
    backend.normalizer = normalizers.Sequence(steps)
    if user_defined:  # they are never merged with their neighbours
        pattern = "|".join(map(re.escape, sorted(user_defined, key=len, reverse=True)))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if dummy_prefix else []),
        ]
    )
    special = [text for text, one in zip(texts, types, strict=True) if one in (UNKNOWN, CONTROL)]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    bos, eos = option(trainer, 41, 1), option(trainer, 42, 2)
    names = {
        name: texts[number] for name, number in (("bos_token", bos), ("eos_token", eos)) if 0 <= number < len(texts)
    }
    is_t5 = str(settings.get("tokenizer_class")).startswith("T5")
    _put_around(backend, {**names, **settings}, bos=not is_t5, eos=is_t5)
    return backend


def _message(data: bytes) -> dict[int, list[Any]]:
    """The fields of a message in the format of Protocol Buffers, by number: integers, four or eight bytes, or bytes."""
    fields: dict[int, list[Any]] = {}
    place = 0

    def integer() -> int:
        nonlocal place
        value, shift = 0, 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value - 2**64 if value >= 2**63 else value

    while place < len(data):
        number, form = divmod(integer(), 8)
        if form == 0:
            value: Any = integer()
        elif form in (1, 2, 5):
            length = {1: 8, 5: 4}.get(form) or integer()
            value = data[place : place + length]
            if len(value) != length:
                raise ValueError("the message ends too early")
            place += length
        else:
            raise ValueError(f"no field has the form {form}")
        fields.setdefault(number, []).append(value)
    return fields


def end_of_text(resolve_file: ResolveFile, num_rows: int) -> tuple[int, ...]:
    """The ids of the tokens that end a text, by `generation_config.json`, or else `config.json`; empty if neither says.

    A model that has learned to converse often has several. Ids that are no row of the model never come, and do not
    count.

    Raises:
        CheckpointError: what a file gives is no token id.
    """
    for name in ("generation_config.json", "config.json"):
        given = read_object(optional_file(resolve_file, name)).get("eos_token_id")
        ids = given if isinstance(given, list) else [] if given is None else [given]
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
            raise CheckpointError(f"{name}: eos_token_id should be a token id or a list of them, not {shown(given)}")
        if known := tuple(one for one in ids if 0 <= one < num_rows):
            return known
    return ()
