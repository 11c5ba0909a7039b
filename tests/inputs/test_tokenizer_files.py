"""A checkpoint's tokenizer files: the ids and texts are those of the libraries that made the formats."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from allformers.checkpoints import CheckpointError
from allformers.inputs.tokenizer_files import QWEN2_PATTERN
from allformers.inputs.tokenizers import JsonTokenizer, load_tokenizer

CORPUS = [
    "The for statement is used to iterate over the elements of a sequence (such as a string, tuple or list).",
    "def f(x):\n    return x ** 2  # a comment\n\n\tif not x:\n\t\tpass\r\n",
    "It's what we've got: don't stop, they're here. \"Quoted\" 'words' 12345 67.89 1,000,000",
    "naïve café, 1–2 €, Wörter über Straßen; ça va? El niño comió piñas.",
    "日本語のテキスト 中文字符 한국어 русский текст ελληνικά עברית العربية हिन्दी",
    "🙂 👩‍👩‍👧‍👦 🇫🇷 e\u0301 a\u030a  two  spaces   three",
] * 4

ODD = [
    "",
    " ",
    "   ",
    "\n",
    " \n \t\r\n  x",
    "👩‍👩‍👧‍👦👨🏽‍💻🏴󠁧󠁢󠁥󠁮󠁧󠁿🇫🇷❤️‍🔥",  # joined emoji
    "e\u0301\u0323 Z\u0351\u0343a\u030a\u0327lgo n\u0303",  # combining accents
    "שלום עולם \u200f(עברית)\u200e مرحبا بالعالم \u202eabc\u202c",  # right to left
    "for (i = 0; i < n; i++) {\n\tx[i] = y->z ? 'a' : \"\\n\";\n}\n\n\n",
    "\x00\x01\x07\x1b[31m\x7f\x85\u2028\u2029\ufeff",
    "<s>the</s> <|endoftext|>for<|endoftext|> <unk>[CLS] a [SEP] [MASK] <eos><bos>",
    " leading and trailing ",
    "a\u00a0b\u2003c\u3000d\u200be",
    "▁the ▁▁for <0x41> Ġthe ##ing",
    "ﬁ ﬂ ½ ² Ⅷ ｆｕｌｌ ẞ İ ŉ ǆ",
    "\ufffd a replacement \ufffd",
    "don't we'LL I'Ve O'REILLY 's",
    "1234567890 3.14159 1e-10 0x1F ٣٤٥ 四五六",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈𐌰𐌽 𓀀 \U0010ffff",
    "no-one , has . spaces ! before ? signs n't 's",
]

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def lines(count: int) -> list[str]:
    """Random lines: words, code, other scripts, special tokens, in any order."""
    random_ = random.Random(0)
    parts = [part for text in (*CORPUS, *ODD) for part in text.split(" ")]
    joins = [" ", " ", " ", "  ", "", "\n", "\t"]
    return [
        "".join(random_.choice(parts) + random_.choice(joins) for _ in range(random_.randint(1, 14)))
        for _ in range(count)
    ]


def byte_level(words: Any = None, special: tuple[str, ...] = ("<|endoftext|>",), **settings: Any) -> Backend:
    """A byte-level BPE, as GPT-2, Llama 3 and Qwen have one."""
    backend = Backend(models.BPE(**settings))
    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    split = [] if words is None else [pre_tokenizers.Split(Regex(words), behavior="isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, as_letters])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=500, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
        ),
    )
    return backend


def gpt2() -> Backend:
    return byte_level()


def llama3() -> Backend:
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    backend = byte_level(LLAMA3_PATTERN, names, ignore_merges=True)
    backend.post_processor = processors.TemplateProcessing(single=f"{names[0]} $A", special_tokens=[(names[0], 0)])
    return backend


def qwen() -> Backend:
    backend = byte_level(QWEN2_PATTERN, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    backend.normalizer = normalizers.NFC()
    return backend


def gpt2_with_added_tokens() -> Backend:
    backend = byte_level()
    backend.add_tokens([AddedToken("☃", normalized=False), AddedToken(" the ", lstrip=True), "ing"])
    backend.add_special_tokens([AddedToken("[PAD]", rstrip=True), AddedToken("for", single_word=True)])
    return backend


def sentencepiece_bpe(normalizer: Any, pre_tokenizer: Any, special: tuple[str, ...], strip: bool) -> Backend:
    """A BPE over a text whose spaces are `▁`, with bytes for what it does not know."""
    backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*special, *BYTES], show_progress=False, limit_alphabet=60
    )
    backend.train_from_iterator([text.replace(" ", " ▁") for text in CORPUS], trainer)
    content = json.loads(backend.to_str())  # bytes are no added tokens
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] not in BYTES]
    backend = Backend.from_str(json.dumps(content))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    bos = special[1]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return backend


def llama2() -> Backend:
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return sentencepiece_bpe(normalizers.Sequence(steps), None, ("<unk>", "<s>", "</s>"), strip=True)


def mistral() -> Backend:
    metaspace = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return sentencepiece_bpe(None, metaspace, ("<unk>", "<s>", "</s>"), strip=True)


def gemma() -> Backend:
    backend = sentencepiece_bpe(normalizers.Replace(" ", "▁"), None, ("<unk>", "<bos>", "<eos>", "<pad>"), strip=False)
    backend.add_tokens([AddedToken("</s>", normalized=False), AddedToken("\n\n", normalized=False)])
    return backend


def unigram() -> Backend:
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return backend


def wordpiece(cased: bool) -> Backend:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return backend


def word_level() -> Backend:
    backend = Backend(models.WordLevel(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(
        CORPUS, trainers.WordLevelTrainer(vocab_size=100, special_tokens=["[UNK]", "<eos>"], show_progress=False)
    )
    return backend


def suffixes() -> Backend:
    """A BPE that marks the ends of words, as the first GPT has one."""
    backend = Backend(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


KINDS: dict[str, tuple[Callable[[], Backend], dict[str, Any]]] = {
    "gpt2": (gpt2, {"eos_token": "<|endoftext|>"}),
    "gpt2 with added tokens": (gpt2_with_added_tokens, {"eos_token": "<|endoftext|>", "pad_token": "[PAD]"}),
    "llama3": (llama3, {"eos_token": "<|eot_id|>"}),
    "qwen": (qwen, {"eos_token": "<|im_end|>", "add_bos_token": False}),
    "llama2": (llama2, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True}),
    "mistral": (mistral, {"bos_token": "<s>", "eos_token": "</s>"}),
    "gemma": (gemma, {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}),
    "unigram": (unigram, {"eos_token": "</s>", "clean_up_tokenization_spaces": True}),
    "wordpiece cased": (lambda: wordpiece(True), {"cls_token": "[CLS]", "clean_up_tokenization_spaces": True}),
    "wordpiece uncased": (lambda: wordpiece(False), {"mask_token": "[MASK]", "extra_special_tokens": ["[NEW]"]}),
    "words": (word_level, {"eos_token": {"__type": "AddedToken", "content": "<eos>"}}),
    "suffixes": (suffixes, {}),
}
"""Each kind of tokenizer, trained small, and what stands in its tokenizer_config.json."""


@pytest.fixture(params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make, settings = KINDS[request.param]
    make().save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def assert_equals_the_libraries(folder: Path, texts: list[str]) -> None:
    from transformers import PreTrainedTokenizerFast

    ours, reference = load_tokenizer(folder, 2000), PreTrainedTokenizerFast.from_pretrained(folder)
    assert isinstance(ours, JsonTokenizer)
    for text in texts:
        token_ids = reference(text)["input_ids"]
        assert ours.encode(text) == token_ids, text
        assert ours.encode_part(text) == reference(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(token_ids) == reference.decode(token_ids), text
        assert "".join(ours.decode_stream(token_ids)) == reference.decode(token_ids), text
        cut = len(token_ids) // 2
        before = ours.decode(token_ids[:cut])
        if reference.decode(token_ids).startswith(before):
            streamed = before + "".join(ours.decode_stream(token_ids[cut:], after=token_ids[:cut]))
            assert streamed == reference.decode(token_ids), text
    random_ = random.Random(0)
    for _ in range(len(texts) // 4):  # what an untrained model writes
        token_ids = [random_.randrange(ours.vocab_size + 20) for _ in range(random_.randint(1, 150))]
        assert ours.decode(token_ids) == reference.decode(token_ids)
        assert "".join(ours.decode_stream(token_ids)) == reference.decode(token_ids)


def test_odd_texts_have_the_ids_and_the_text_of_the_libraries(checkpoint: Path) -> None:
    assert_equals_the_libraries(checkpoint, [*ODD, *lines(5)])


@pytest.mark.slow
def test_two_thousand_lines_have_the_ids_and_the_text_of_the_libraries(checkpoint: Path) -> None:
    assert_equals_the_libraries(checkpoint, lines(2000))


def write_gpt2_files(backend: Backend, folder: Path) -> None:
    """What GPT-2's checkpoints had before there was a tokenizer.json."""
    model = json.loads(backend.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def test_gpt2s_files_are_read_with_the_tokens_added_beside_them(tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    write_gpt2_files(gpt2(), tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|pad|>": 501, "☃": 500}), encoding="utf-8")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|pad|>"}), encoding="utf-8")
    ours, reference = load_tokenizer(tmp_path, 502), GPT2Tokenizer.from_pretrained(tmp_path)
    for text in [*ODD, *lines(5), "a ☃ snowman<|pad|> ☃☃"]:
        token_ids = reference(text)["input_ids"]
        assert ours.encode(text) == token_ids
        assert ours.decode(token_ids) == reference.decode(token_ids) == text
    assert (ours.vocab_size, ours.eos_token_ids) == (502, (reference.eos_token_id,))
    assert set(ours.special_tokens) == {reference.eos_token_id, 501}


def test_another_vocabulary_at_the_same_place_is_read_anew(tmp_path: Path) -> None:
    write_gpt2_files(gpt2(), tmp_path)
    before = load_tokenizer(tmp_path, 500).encode("the cat")
    write_gpt2_files(qwen(), tmp_path)
    assert load_tokenizer(tmp_path, 500).encode("the cat") != before


def test_qwens_files_are_split_as_qwen_splits(tmp_path: Path) -> None:
    from transformers import Qwen2Tokenizer

    write_gpt2_files(qwen(), tmp_path)
    write_settings(tmp_path, tokenizer_class="RobertaTokenizer")
    with pytest.raises(CheckpointError, match="RobertaTokenizer"):
        load_tokenizer(tmp_path, 500)
    write_settings(tmp_path, tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>")
    ours, reference = load_tokenizer(tmp_path, 500), Qwen2Tokenizer.from_pretrained(tmp_path)
    for text in [*ODD, *lines(5)]:
        assert ours.encode(text) == reference(text)["input_ids"]
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert load_tokenizer(tmp_path, 500).encode("in 2026") == reference("in 2026")["input_ids"]


def write_settings(folder: Path, **settings: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
        {"do_lower_case": False, "strip_accents": True, "clean_up_tokenization_spaces": True},
    ],
)
def test_berts_vocabulary_alone_builds_its_tokenizer(settings: dict[str, Any], tmp_path: Path) -> None:
    from transformers import BertTokenizer

    vocab = wordpiece(cased=True).get_vocab()
    (tmp_path / "vocab.txt").write_text("".join(f"{one}\n" for one in sorted(vocab, key=vocab.get)), encoding="utf-8")
    write_settings(tmp_path, **settings)
    ours, reference = load_tokenizer(tmp_path, 400), BertTokenizer.from_pretrained(tmp_path)
    for text in [*ODD, *lines(5)]:
        token_ids = reference(text)["input_ids"]
        assert ours.encode(text) == token_ids
        assert ours.decode(token_ids) == reference.decode(token_ids)
    assert ours.mask_token_id == reference.mask_token_id
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt.*\b3\b.*\[CLS\], \[SEP\]"):
        load_tokenizer(tmp_path, 400)


@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
@pytest.mark.parametrize(
    ("model_type", "style"), [("bpe", "llama"), ("bpe", "gemma"), ("unigram", "llama"), ("unigram", "t5")]
)
def test_a_sentencepiece_model_gives_what_its_library_gives(model_type: str, style: str, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")

    options = {
        "llama": {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        "gemma": {
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,
            "user_defined_symbols": ["\n\n", "▁▁", "<table>"],
        },
        "t5": {"bos_id": -1, "pad_id": 3},
    }[style]
    name = {"llama": "tokenizer.model", "gemma": "tokenizer.model", "t5": "spiece.model"}[style]
    with (tmp_path / name).open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for text in CORPUS for line in text.splitlines()),
            model_writer=file,
            model_type=model_type,
            vocab_size=500 if style != "t5" else 200,
            hard_vocab_limit=False,
            minloglevel=2,
            **options,
        )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name))
    if style == "t5":
        write_settings(tmp_path, tokenizer_class="T5Tokenizer")
    ours = load_tokenizer(tmp_path, 1000)
    before, after = ([1], []) if style != "t5" else ([], [reference.eos_id()])
    special = [reference.id_to_piece(number) for number in range(len(reference)) if reference.is_control(number)]
    texts = [text for text in [*ODD, *lines(50)] if not any(name in text for name in [*special, "<unk>", "\x00"])]
    if model_type == "unigram":  # it takes the name of a byte for the byte, in transformers too
        texts = [text for text in texts if "<0x" not in text]
    if style == "t5":  # where an accent follows an accent, the library `tokenizers` drops it, and so does transformers
        texts = [text for text in texts if not any("\u0300" <= character < "\u0370" for character in text)]
    for text in texts:
        token_ids = reference.encode(text)
        assert ours.encode(text) == [*before, *token_ids, *after], text
        if reference.unk_id() not in token_ids:
            assert ours.decode(token_ids) == reference.decode(token_ids), text
    assert ours.eos_token_ids == (reference.eos_id(),)
    ours.save(tmp_path)
    assert load_tokenizer(tmp_path, 1000).encode("the for") == ours.encode("the for")


@pytest.mark.parametrize("content", [b"", b"IQ== 0\nIg== 1\n", b"\x0a\xff\xff", b"\x08\x01"])
def test_what_is_no_sentencepiece_model_is_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model.*tokenizer\.json"):
        load_tokenizer(tmp_path, 1000)


def word_file(folder: Path, vocab: dict[str, int], **changes: Any) -> Path:
    """A tokenizer.json of words, with some parts changed."""
    backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    content = json.loads(backend.to_str())
    (folder / "tokenizer.json").write_text(json.dumps({**content, **changes}), encoding="utf-8")
    return folder


WORDS = {"a": 0, "b": 1, "[UNK]": 2}


def added(token: str, token_id: int, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": token, "special": special, **flags}


def test_ids_with_gaps_between_them_are_kept(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(word_file(tmp_path, {**WORDS, "c": 70000}, added_tokens=[added("<x>", 9)]), 70010)
    assert tokenizer.vocab_size == 70001
    assert tokenizer.encode("a<x> c") == [0, 9, 70000]
    assert tokenizer.decode([0, 5, 9, 70000, 70009]) == "a <x> c"
    assert "".join(tokenizer.decode_stream([0, 5, 9, 70000, 70009])) == "a <x> c"
    assert [tokenizer.is_token(one) for one in (0, 5, 9, 70000, 70001, -1, 2**40)] == [1, 0, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"\b5\b"):
        tokenizer.token_bytes(5)
    with pytest.raises(ValueError, match=r"-1\b"):
        tokenizer.decode([0, -1])
    with pytest.raises(CheckpointError, match=r"70001.*\b100\b.*'c'.*70000"):
        load_tokenizer(tmp_path, 100)
    with pytest.raises(CheckpointError, match=r"'<x>'.*\b1\b.*'b'"):
        load_tokenizer(word_file(tmp_path, WORDS, added_tokens=[added("<x>", 1)]), 100)


def test_an_added_token_beyond_the_models_rows_is_refused_in_a_text_only(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(word_file(tmp_path, WORDS, added_tokens=[added("<image>", 3)]), 3)
    assert (tokenizer.vocab_size, tokenizer.encode("a b")) == (3, [0, 1])
    with pytest.raises(ValueError, match=r"'<image>'.*\b3\b.*\b3\b"):
        tokenizer.encode("a <image> b")


@pytest.mark.parametrize(
    ("vocab", "changes"),
    [
        (WORDS, {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////AAAAAAAA"}}),
        (WORDS, {"pre_tokenizer": {"type": "FixedLength", "length": 0}}),
        ({"a": 0}, {}),
        (WORDS, {"added_tokens": [{"content": "<x>"}]}),
        (WORDS, {"model": {"type": "Nonsense"}}),
    ],
)
def test_an_odd_file_is_one_error_with_its_name(vocab: dict[str, int], changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(word_file(tmp_path, vocab, **changes), 100).encode("a zzz")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"a":' * 100_000),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": "y"}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
        ("generation_config.json", '{"eos_token_id": "two"}'),
        ("added_tokens.json", "[]"),
    ],
)
def test_odd_settings_are_one_error(name: str, content: str, tmp_path: Path) -> None:
    (word_file(tmp_path, WORDS) / name).write_text(content)
    with pytest.raises(CheckpointError, match=r"\.json"):
        load_tokenizer(tmp_path, 100)


@pytest.mark.parametrize(
    ("generation", "config", "settings", "expected"),
    [
        ({"eos_token_id": [4, 3]}, {"eos_token_id": 3}, "</s>", (4, 3)),
        ({"eos_token_id": 4}, {"eos_token_id": 3}, None, (4,)),
        ({"eos_token_id": None}, {"eos_token_id": [3]}, "</s>", (3,)),
        ({}, {"eos_token_id": 50256}, "<turn>", (4,)),  # no row of the model
        ({"eos_token_id": [7000, 3]}, {}, "</s>", (3,)),
        (None, None, {"content": "<turn>"}, (4,)),
        (None, None, "a", (0,)),
        (None, None, None, (3,)),  # </s> is a word, <eos> is special
    ],
)
def test_the_end_of_text_is_the_one_that_the_files_name(
    generation: Any, config: Any, settings: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    special = [added("<eos>", 3), added("<turn>", 4)]
    word_file(tmp_path, {"a": 0, "</s>": 1, "[UNK]": 2}, added_tokens=special)
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    if settings is not None:
        write_settings(tmp_path, eos_token=settings)
    tokenizer = load_tokenizer(tmp_path, 100)
    assert (tokenizer.eos_token_ids, tokenizer.eos_token_id) == (expected, expected[0])
    tokenizer.save(tmp_path / "..")  # a prepared text has no other file of the checkpoint
    assert load_tokenizer(tmp_path.parent, 100).eos_token_id == expected[0]


def test_bytes_that_are_no_character_yet_wait(tmp_path: Path) -> None:
    llama2().save(str(tmp_path / "tokenizer.json"))
    tokenizer = JsonTokenizer(tmp_path / "tokenizer.json")
    token_ids = tokenizer.encode_part("a ☃ b")
    pieces = list(tokenizer.decode_stream(token_ids))
    assert "".join(pieces) == "a ☃ b"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert list(tokenizer.decode_stream(token_ids[:-3]))[-1] != ""  # the end comes, complete or not


def test_a_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\b1\b.*udcff"):
        load_tokenizer(word_file(tmp_path, WORDS), 100).encode("a\udcff")


def test_a_stream_is_the_whole_text_however_long(tmp_path: Path) -> None:
    for make in (gpt2, llama2, lambda: wordpiece(cased=True)):
        make().save(str(tmp_path / "tokenizer.json"))
        tokenizer = JsonTokenizer(tmp_path / "tokenizer.json")
        token_ids = tokenizer.encode_part(" ".join(lines(50)))
        assert len(token_ids) > 200
        assert "".join(tokenizer.decode_stream(token_ids)) == tokenizer.decode(token_ids)
