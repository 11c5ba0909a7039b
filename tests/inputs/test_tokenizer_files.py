"""A checkpoint's tokenizer files: the ids and texts are those of the libraries that made the formats."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

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
    for _ in range(len(texts)):  # what an untrained model writes
        token_ids = [random_.randrange(ours.vocab_size + 20) for _ in range(random_.randint(1, 150))]
        assert ours.decode(token_ids) == reference.decode(token_ids)
        assert "".join(ours.decode_stream(token_ids)) == reference.decode(token_ids)


def test_odd_texts_have_the_ids_and_the_text_of_the_libraries(checkpoint: Path) -> None:
    assert_equals_the_libraries(checkpoint, [*ODD, *lines(20)])


@pytest.mark.slow
def test_two_thousand_lines_have_the_ids_and_the_text_of_the_libraries(checkpoint: Path) -> None:
    assert_equals_the_libraries(checkpoint, lines(2000))
