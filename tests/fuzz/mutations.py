"""Broken checkpoints, each made from its number: a sound one of a random family, with a few things changed."""

import io
import json
import os
import pickle
import pickletools
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

KINDS = ("config", "config", "config", "text", "header", "index", "pickle", "zip")
"""What is changed; a configuration most often, for it has the most that can be said."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, 4, 8, 16, -1, 64, 1000, 10**6, 10**9, 2**31, 2**63, 10**30, 10**400, -(10**10)),
    *(0.0, 0.5, 1.0, 1.5, -0.5, 1e-6, 1e-300, 1e6, 1e300, float("nan"), float("inf"), -float("inf")),
    *("", "x", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "default", "linear", "yarn", "llama3"),
    *("dynamic", "longrope", "full_attention", "sliding_attention", "float16", "2", "0.5", "null", "x" * 5000),
    *("\x1b[2J", "\ud800", "\0", [], {}, [1], [None], ["full_attention"], ["sliding_attention"], [[]], {"a": 1}),
    *({"": None}, [0] * 300, {str(key): key for key in range(300)}, {"rope_type": "linear", "factor": 2.0}),
)
NAMES = (
    *("", ".", "..", "/", "../model.safetensors", "/etc/passwd", "/dev/zero", "a/b", "a\\b", "C:x", "x" * 300),
    *("x" * 100_000, "\0", "a\0b", "\ud800", "\n", "\x1b[2J", "config.json", "nowhere.safetensors", "é" * 200),
)
ROPE = {
    "rope_theta": (10000.0, 500.0, 1e6, 0, -1.0, "x"),
    "rope_type": ("default", "linear", "yarn", "llama3", "dynamic", "longrope", "x", None, 3),
    "factor": (1.0, 2.0, 8.0, 0, -2.0, 1e30, "2", None),
    "original_max_position_embeddings": (16, 64, 0, None, "x", 10**20),
    "low_freq_factor": (1.0, 4.0, 0.0, None),
    "high_freq_factor": (4.0, 1.0, "x"),
    "beta_fast": (32.0, 1, 0),
    "beta_slow": (1.0, 64.0, 0),
    "attention_factor": (None, 1.0, 0.5, "x"),
    "mscale": (1.0, 0.5, 0),
    "mscale_all_dim": (1.0, 0.5, 0),
    "truncate": (True, False),
}
"""What may stand in an object about RoPE, and values for it."""


class Case(NamedTuple):
    """A checkpoint to load.

    Attributes:
        number: with the seed, all that it is made from.
        kind: which file is changed.
        family: the model's name on the command line.
        what: what has been changed, in words.
        fields: for a configuration: the fields that are not as they were, one of which a refusal has to name.
    """

    number: int
    kind: str
    family: str
    what: str
    fields: tuple[str, ...]


def make(number: int, seed: int, bases: Path, folder: Path) -> Case:
    """Write the checkpoint of a number into `folder`, from one of those in `bases`."""
    rng = random.Random(f"{seed} {number}")
    family = rng.choice(sorted(path.name for path in bases.iterdir()))
    kind = rng.choice(KINDS)
    shutil.copytree(bases / family, folder)
    full = folder / "full.json"  # all that the reference writes; without it, what we write
    full.replace(folder / "config.json") if rng.random() < 0.5 else full.unlink()
    what, fields = {
        "config": _change_config,
        "text": _change_text,
        "header": _change_header,
        "index": _change_index,
        "pickle": _change_pickle,
        "zip": _change_bytes,
    }[kind](rng, folder)
    return Case(number, kind, family, what, fields)


# Configurations


def _change_config(rng: random.Random, folder: Path) -> tuple[str, tuple[str, ...]]:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    changed: dict[str, str] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name, words = rng.choice((_set, _set, _vary, _drop, _exchange, _rope, _unknown))(rng, config)
        changed |= dict.fromkeys(name, words)
    path.write_text(json.dumps(config))
    return "; ".join(dict.fromkeys(changed.values())), tuple(changed)


def _place(rng: random.Random, config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A field: of the file, or of an object in it."""
    holder = config
    while True:
        name = rng.choice(sorted(holder))
        inner = holder[name]
        if not (isinstance(inner, dict) and inner and rng.random() < 0.8):
            return holder, name
        holder = inner


def _set(rng: random.Random, config: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    holder, name = _place(rng, config)
    holder[name] = rng.choice(VALUES)
    return (name,), f"{name} = {holder[name]!r:.60}"


def _vary(rng: random.Random, config: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """A value near to the right one, or the right one in another type."""
    holder, name = _place(rng, config)
    value = holder[name]
    choices: list[Any] = [str(value), [value], {"value": value}]
    if isinstance(value, bool):
        choices += [not value, int(value)]
    elif isinstance(value, int | float):
        choices += [value + 1, value - 1, value * 2, value / 2, value // 2, -value, float(value), value * 10**6]
    elif isinstance(value, list):
        choices += [value[:-1], value * 2, value[::-1], [*value, None]]
    holder[name] = rng.choice(choices)
    return (name,), f"{name} = {holder[name]!r:.60}"


def _drop(rng: random.Random, config: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    holder, name = _place(rng, config)
    del holder[name]
    return (name,), f"without {name}"


def _exchange(rng: random.Random, config: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    one, other = rng.sample(sorted(config), 2)
    config[one], config[other] = config[other], config[one]
    return (one, other), f"{one} and {other} exchanged"


def _rope(rng: random.Random, config: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    name = rng.choice(
        ("rope_scaling", "rope_parameters", "rope_theta", "rope_local_base_freq", "partial_rotary_factor")
    )
    inner = {key: rng.choice(ROPE[key]) for key in rng.sample(sorted(ROPE), rng.randint(0, 5))}
    if "type" in name or rng.random() < 0.1:
        inner["type"] = rng.choice(ROPE["rope_type"])
    config[name] = inner if name in {"rope_scaling", "rope_parameters"} else rng.choice((10000.0, 100.0, 0.5, None, 0))
    return (name, *inner), f"{name} = {config[name]!r:.200}"


def _unknown(rng: random.Random, config: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    name = rng.choice(
        (
            *(
                *NAMES[:8],
                "x" * 500,
                "\ud800",
                "sliding_window",
                "layer_types",
                "use_sliding_window",
                "head_dim",
                "axes",
            ),
            *("n_inner", "quantization_config", "is_decoder", "tie_word_embeddings", "num_key_value_heads"),
        )
    )
    config[name] = rng.choice(VALUES)
    return (name,), f"{name!r:.60} = {config[name]!r:.60}"


def _change_text(rng: random.Random, folder: Path) -> tuple[str, tuple[str, ...]]:
    """The file itself, of which nothing but JSON in UTF-8 can be read."""
    path = folder / "config.json"
    text = path.read_bytes()
    at = rng.randrange(len(text))
    some = bytes(rng.choices(range(256), k=rng.randint(1, 6)))
    first = json.loads(text)
    twice = rng.choice(sorted(first))
    new = {
        "truncated": text[:at],
        "other bytes": text[:at] + some + text[at + len(some) :],
        "more bytes": text[:at] + some + text[at:],
        "a letter gone": text[:at] + text[at + 1 :],
        "a byte order mark": b"\xef\xbb\xbf" + text,
        "UTF-16": text.decode().encode("utf-16"),
        "deep": b'{"model_type":' + b"[" * 100_000,
        "deep and closed": text.replace(b"{", b'{"deep": ' + b"[" * 900 + b"]" * 900 + b", ", 1),
        "long number": text.replace(b"{", b'{"long": ' + b"1" * 5000 + b", ", 1),
        "twice": text.replace(b"{", f'{{"{twice}": {json.dumps(rng.choice(VALUES))}, '.encode(), 1),
        "empty": b"",
        "a list": b"[]",
        "nothing but zeros": bytes(100),
    }
    what = rng.choice([*new, "folder", "pipe", "link to itself", "link to passwd", "link to zeros"])
    if what in new:
        path.write_bytes(new[what])
    else:
        _replace(path, what)
    return what, ("config.json",)


def _replace(path: Path, what: str) -> None:
    """Something else than a file in its place."""
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link to itself": path, "link to passwd": "/etc/passwd"}.get(what, "/dev/zero"))


# Files of tensors

SIZES: tuple[Any, ...] = (0, 1, 2, 3, -1, 7, 255, 65536, 10**6, 2**31, 2**40, 2**62, 2**64, 10**30, 1.5, None, "1", [])


def _change_header(rng: random.Random, folder: Path) -> tuple[str, tuple[str, ...]]:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    text, numbers = whole[8 : 8 + length], whole[8 + length :]
    header = json.loads(text)
    name = rng.choice(sorted(header.keys() - {"__metadata__"}))
    other = rng.choice(sorted(header.keys() - {"__metadata__"}))
    entry = header[name]

    def shape() -> None:
        entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice(SIZES)

    def offsets() -> None:
        entry["data_offsets"][rng.randrange(2)] = rng.choice(SIZES)

    def dtype() -> None:
        entry["dtype"] = rng.choice(["F16", "BF16", "F64", "I32", "U32", "F8_E4M3", "F4", "F8_E8M0", "x", None, [], 1])

    def rename() -> None:
        header[rng.choice(NAMES)] = header.pop(name)

    def exchange() -> None:
        header[name], header[other] = header[other], header[name]

    def metadata() -> None:
        header["__metadata__"] = rng.choice([None, {}, {"format": "tf"}, {"format": 1}, [], {"x" * 5000: "y"}, "pt"])

    def drop() -> None:
        del header[name]

    def hole() -> None:
        header["extra"] = {"dtype": "F32", "shape": [4], "data_offsets": [len(numbers) + 8, len(numbers) + 24]}

    def empty() -> None:
        header["empty"] = {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [len(numbers)] * 2}

    def nonsense() -> None:
        header[name] = rng.choice(VALUES)

    def ranks() -> None:
        entry["shape"] = rng.choice([[], [[]], [1] * 1000, {}, "x", 3, None, [2**62] * 60, [0] * 65])

    changes: list[Callable[[], None]]
    changes = [shape, offsets, dtype, rename, exchange, metadata, drop, hole, empty, nonsense, ranks]
    raw = ("truncated", "longer", "length", "other bytes", "other numbers", "twice", "deep", "pipe", "folder")
    what = rng.choice([*changes, *raw])
    if callable(what):
        what()
        text, what = json.dumps(header).encode(), what.__name__
        whole = len(text).to_bytes(8, "little") + text + numbers
    elif what == "truncated":
        whole = whole[: rng.choice((rng.randrange(len(whole)), rng.randrange(20)))]
    elif what == "longer":
        whole += bytes(rng.randint(1, 9))
    elif what == "length":
        whole = (
            rng.choice((0, 1, length - 1, length + 1, 10**8, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little") + whole[8:]
        )
    elif what in {"other bytes", "other numbers"}:
        at = rng.randrange(8 + length) if what == "other bytes" else rng.randrange(8 + length, len(whole))
        some = bytes(rng.choices(range(256), k=rng.randint(1, 4)))
        whole = whole[:at] + some + whole[at + len(some) :]
    elif what == "twice":
        text = text.replace(b"{", f"{{{json.dumps(name)}: {json.dumps(header[other])}, ".encode(), 1)
        whole = len(text).to_bytes(8, "little") + text + numbers
    elif what == "deep":
        text = b'{"a":' + b"[" * 100_000
        whole = len(text).to_bytes(8, "little") + text + numbers
    if what in {"pipe", "folder"}:
        _replace(path, what)
    else:
        path.write_bytes(whole)
    return f"{what} of {name}", ()


def _change_index(rng: random.Random, folder: Path) -> tuple[str, tuple[str, ...]]:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    pickled = rng.random() < 0.3
    stem = "pytorch_model.bin" if pickled else "model.safetensors"
    places: dict[str, Any] = {}
    for shard in range(3):
        part = {name: weights[name] for name in list(weights)[shard::3]}
        file = f"shard-{shard}.{stem.rpartition('.')[2]}"
        torch.save(part, folder / file) if pickled else safetensors.torch.save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    name, other = rng.sample(sorted(places), 2)
    content: Any = {"metadata": {}, "weight_map": places}
    what = rng.choice(("file", "map", "drop", "more", "move", "twice", "deep", "none", "gone", "cut", "pipe", "folder"))
    file = places[name]
    if what == "file":
        places[name] = rng.choice((*NAMES, *VALUES))
    elif what == "map":
        content["weight_map"] = rng.choice(VALUES)
    elif what == "drop":
        del places[name]
    elif what == "more":
        places[rng.choice(NAMES)] = file
    elif what == "move":
        places[name] = places[other]
    text = json.dumps(content)
    if what == "twice":
        text = text.replace('"weight_map": {', f'"weight_map": {{{json.dumps(name)}: {json.dumps(places[other])}, ')
    elif what == "deep":
        text = '{"weight_map":' * 100_000
    elif what == "none":
        text = rng.choice(("", "[]", "null", "{", "{}"))
    elif what == "gone":
        (folder / file).unlink()
    elif what == "cut":
        (folder / file).write_bytes((folder / file).read_bytes()[: rng.randrange(2000)])
    elif what in {"pipe", "folder"}:
        _replace(folder / file, what)
    (folder / f"{stem}.index.json").write_text(text)
    return f"{what}: {places.get(name)!r:.60}", ()


class _Call:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


def _change_pickle(rng: random.Random, folder: Path) -> tuple[str, tuple[str, ...]]:
    """Other things than plain tensors in a state dict, by PyTorch's own writer."""
    weights: dict[Any, Any] = dict(safetensors.torch.load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    name = rng.choice(sorted(weights))
    value = weights[name]
    other = rng.choice([each for each in weights if weights[each].shape == value.shape])
    matrix = value if value.dim() > 1 else value[None]
    values: dict[str, Callable[[], Any]] = {
        "plain": lambda: value,
        "sparse": lambda: value.to_sparse(),
        "meta": lambda: value.to("meta"),
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "quantised": lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        "parameter": lambda: torch.nn.Parameter(value),
        "half": lambda: value.half(),
        "integers": lambda: value.int(),
        "complex": lambda: value.to(torch.complex64),
        "float8": lambda: value.to(torch.float8_e4m3fn),
        "transposed": lambda: matrix.t().contiguous().t() if value.dim() == 2 else value,
        "cut out": lambda: torch.cat([value, value])[: len(value)],
        "expanded": lambda: torch.zeros(1).expand(value.shape),
        "another": lambda: weights[other],
        "numpy": lambda: value.numpy(),
        "a number": lambda: 1.5,
        "a list": lambda: value.tolist(),
        "memory": lambda: _Call(bytearray, 10**11),
        "memory by tensor": lambda: _Call(torch.empty, 10**11),
        "code": lambda: _Call(os.mkdir, str(folder / "mark")),
        "larger": lambda: torch.zeros(*value.shape, 2),
    }
    keys = {"a key of a number": 1, "a key of nothing": None, "a key of bytes": b"x", "a long key": "x" * 10**5}
    what = rng.choice([*values, *keys, "a model", "a list of all"])
    whole: Any = weights
    if what in keys:
        weights[keys[what]] = value
    elif what in values:
        weights[name] = values[what]()
    elif what == "a model":
        whole = torch.nn.Linear(2, 2)
    else:
        whole = list(weights.items())
    new = rng.random() < 0.6
    try:
        torch.save(whole, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    except Exception:  # the older layout cannot hold all of these
        new = True
        torch.save(whole, folder / "pytorch_model.bin")
    return f"{what} for {name}, {'zip' if new else 'legacy'}", ()


def _change_bytes(rng: random.Random, folder: Path) -> tuple[str, tuple[str, ...]]:
    """The bytes of a pickled file: its instructions, their arguments, or the archive around them."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    new = rng.random() < 0.7
    torch.save(weights, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    what = rng.choice(("argument", "argument", "instruction", "flip", "truncated", "deflated", "records", "bomb"))
    if what == "flip" or (what == "records" and not new) or (what == "deflated" and not new):
        at = rng.choice((rng.randrange(len(whole)), rng.randrange(min(4000, len(whole)))))
        whole = whole[:at] + bytes(rng.choices(range(256), k=rng.randint(1, 3))) + whole[at + 1 :]
        what = "flip"
    elif what == "truncated":
        whole = whole[: rng.randrange(len(whole))]
    elif new:
        whole = _change_archive(rng, whole, what)
    else:
        head = io.BytesIO(whole)
        for _ in range(3):
            list(pickletools.genops(head))
        first = head.tell()
        list(pickletools.genops(head))
        last = head.tell()
        whole = whole[:first] + _change_program(rng, whole[first:last], what) + whole[last:]
    path.write_bytes(whole)
    return f"{what}, {'zip' if new else 'legacy'}", ()


def _change_archive(rng: random.Random, whole: bytes, what: str) -> bytes:
    source, target = zipfile.ZipFile(io.BytesIO(whole)), io.BytesIO()
    how = zipfile.ZIP_DEFLATED if what == "deflated" else zipfile.ZIP_STORED
    change = rng.choice(("gone", "shorter", "longer", "twice", "renamed", "byteorder"))
    chosen = rng.choice([name for name in source.namelist() if "/data/" in name])
    with zipfile.ZipFile(target, "w", how) as archive:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/data.pkl") and what in {"argument", "instruction", "bomb"}:
                content = _change_program(rng, content, what)
            if what == "records" and name == chosen:
                content = {"shorter": content[:-1], "longer": bytes(8) + content}.get(change, content)
                name = name + "x" if change == "renamed" else name
                if change == "gone":
                    continue
            if what == "records" and change == "byteorder" and name.endswith("/byteorder"):
                content = b"big"
            archive.writestr(name, content)
    return target.getvalue()


def _change_program(rng: random.Random, program: bytes, what: str) -> bytes:
    """A pickle with one instruction more, less, or of another argument."""
    places = [(opcode, argument, at) for opcode, argument, at in pickletools.genops(program)]
    if what == "bomb":
        bomb = rng.choice(
            (
                b"r\xff\xff\xff\xff",  # a memo of four billion places
                b"\x8e" + struct.pack("<Q", 2**40),  # a terabyte of bytes
                b"\x8d" + struct.pack("<Q", 2**62),
                b"\x96" + struct.pack("<Q", 2**40),
                b"\x95" + struct.pack("<Q", 2**40),  # a frame of a terabyte
                b"\x8b" + struct.pack("<i", 2**31 - 1),
                b"(" * 10**6,
                b"]" * 10**6,
                b"\x8f" * 10**6,
                b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R",
                b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R",
                b"ctorch\nempty\nJ\xff\xff\xff\x7f\x85R",
                b"ccollections\nOrderedDict\n](KKKK e\x85R",
                b"I" + b"1" * 5000 + b"\n",
            )
        )
        return program[:2] + bomb + program[2:]
    if what == "argument":
        numbers = [place for place in places if place[0].name in {"BININT1", "BININT2", "BININT", "LONG1"}]
        _, _, at = rng.choice(numbers)
        end = next((start for _, _, start in places if start > at), len(program))
        number = rng.choice((0, 1, 2, 3, 5, 64, 255, 65535, 10**6, 2**31 - 1, -1, 2**40, 2**62, 2**63, 2**64, 2**500))
        return program[:at] + pickle.dumps(number, protocol=2)[2:-1] + program[end:]
    _, _, at = rng.choice(places)
    end = next((start for _, _, start in places if start > at), len(program))
    code = rng.choice(pickletools.opcodes).code.encode("latin-1")
    return rng.choice(
        (program[:at] + program[end:], program[:at] + code + program[at + 1 :], program[:at] + code + program[at:])
    )
