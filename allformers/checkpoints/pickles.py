"""PyTorch's pickles, read without running them: which tensor lies where in the file.

A pickle is a small program, and whoever runs it runs what its author wrote: it can call any function, or ask for
memory until none is left. A file of weights needs six functions, and these are known. So its instructions are looked
at before any is followed, and the functions that it names are not called: what they would make is noted. The numbers
stay in the file, and each tensor has to lie within it.

Two layouts exist. Since PyTorch 1.6 the file is a zip archive, with the pickle and each tensor's numbers as a file
of its own, uncompressed. Before that it was several pickles in a row, and then the numbers.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import torch

from allformers.checkpoints import CheckpointError
from allformers.messages import escaped, shown, shown_name

LARGEST_PICKLE = 8 * 2**20
MOST_OPCODES = 400_000
"""The bytes and the instructions of a pickle that are read. A tensor takes some 200 bytes and 40 instructions."""

MOST_COPIES = 4
"""How many times the file's size all tensors may have together. A tied embedding is there once and has two names."""


class StoredTensor(NamedTuple):
    """Where a tensor lies in a file.

    Attributes:
        start: the byte at which its numbers begin.
        dtype: the type of a number.
        shape: its shape.
        stride: for each axis, the steps from one number to the next.
    """

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def are_sizes(values: Any) -> TypeGuard[Sequence[int]]:
    """True for a list or tuple of whole numbers from zero on, no more and no larger than a tensor's shape may have."""
    return (
        isinstance(values, list | tuple)
        and len(values) <= 64
        and all(type(value) is int and 0 <= value < 2**63 for value in values)
    )


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """The stride of a tensor whose numbers lie in order: each axis steps over all that the later ones hold."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


STORAGES: Mapping[str, torch.dtype] = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}
"""PyTorch's names for stretches of numbers, and the type of these."""

FUNCTIONS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
    }
)
"""What a pickle of weights calls."""

# fmt: off
OPCODES = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET",
    "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID", "EMPTY_DICT", "SETITEM",
    "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE",
))
# fmt: on
"""The instructions that a pickle of weights is written with."""

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
"""What the first two pickles of the older layout hold."""


class _RefusedError(Exception):
    """The pickle would do something else than describe tensors."""


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _StateDict(dict[Any, Any]):
    """A dictionary that can have attributes, such as the versions of modules that PyTorch adds."""


class _Function(NamedTuple):
    """A function that the pickle names. A call notes what it would make. Like all that a pickle may change attributes
    of, it has none.
    """

    name: str

    def __call__(self, *args: Any) -> Any:
        if self.name == "collections.OrderedDict":
            if args:
                raise _RefusedError("an OrderedDict made from other values")
            return _StateDict()
        if self.name == "torch._utils._rebuild_parameter":
            return args[0]
        storage, offset, shape, stride, *others = args
        _requires_grad, _hooks, *others = others or (False, None)
        dtype, *others = others if self.name.endswith("_v3") else (storage.dtype, *others)
        if any(others):
            raise _RefusedError("a tensor that is to be conjugated or negated")
        if not (isinstance(dtype, torch.dtype) and are_sizes((offset, *stride)) and are_sizes(shape)):
            raise ValueError(f"a tensor has the shape {shown(shape)}, the stride {shown(stride)} and {shown(dtype)}")
        return _Tensor(storage, dtype, offset, tuple(shape), tuple(stride))


class _Unpickler(pickle.Unpickler):
    """Follows the instructions of a pickle, with notes in the place of functions and storages."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        """The note for a function, or the type of a storage's numbers; nothing is imported."""
        if module_name in {"torch", "torch.cuda", "torch.storage"} and global_name in STORAGES:
            return STORAGES[global_name]
        dtype = vars(torch).get(global_name) if module_name == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if f"{module_name}.{global_name}" not in FUNCTIONS:
            raise _RefusedError(f"{module_name}.{global_name}")
        return _Function(f"{module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """The note for a storage: the numbers of one or several tensors."""
        kind, dtype, key, _device, numel, *view = pid
        if kind != "storage" or any(part is not None for part in view):
            raise _RefusedError(f"a {shown_name(kind)} that is part of another")
        if not isinstance(dtype, torch.dtype) or type(numel) is not int or not isinstance(key, str):
            raise ValueError(f"a storage of {shown(numel)} numbers has the name {shown(key)}")
        return self.storages.setdefault(key, _Storage(key, dtype, numel))


def read_pickle(path: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a pickled state dict lies in the file.

    Raises:
        CheckpointError: it holds more than tensors, is truncated, or has tensors that do not lie in it.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            state, places = _read_zip(file) if zipped else _read_legacy(file)
        if not isinstance(state, dict):
            raise CheckpointError(f"{path} should hold a dictionary of tensors, not a {type(state).__name__}")
        tensors: dict[str, StoredTensor] = {}
        for name, tensor in dict.items(state):
            if not isinstance(name, str):
                raise CheckpointError(f"{path} should hold tensors by name, but the name {shown(name)} is no string")
            if not isinstance(tensor, _Tensor):
                raise CheckpointError(
                    f"{path} should hold a dictionary of tensors, but {shown(name)} is {shown(tensor)}"
                )
            tensors[name] = _place(tensor, places)
        _check_copies(tensors, path.stat().st_size)
    except CheckpointError:
        raise
    except _RefusedError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, {shown_name(error)}, and reading that could run code: refused. "
            "Ask for the checkpoint as safetensors"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a pickle can go wrong in any way
        raise CheckpointError(
            f"{path} is truncated or not a PyTorch checkpoint: {type(error).__name__}: {escaped(str(error)[:200])}"
        ) from error
    return tensors


def _place(tensor: _Tensor, places: Mapping[str, tuple[int, int]]) -> StoredTensor:
    """Where a tensor lies, once it is seen that its storage holds all of it."""
    storage, itemsize = tensor.storage, tensor.dtype.itemsize
    start, nbytes = places[storage.key]
    used = math.prod(tensor.shape)
    reach = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True)) + 1
    room = min(nbytes, storage.numel * storage.dtype.itemsize)
    if used and (reach * itemsize > room or used * itemsize > room):
        raise ValueError(f"a tensor of shape {shown(tensor.shape)} lies beyond the {room} bytes of its storage")
    return StoredTensor(start + tensor.offset * itemsize, tensor.dtype, tensor.shape, tensor.stride)


def _check_copies(tensors: Mapping[str, StoredTensor], file_size: int) -> None:
    """Refuse a file that names the same numbers again and again: a megabyte could stand for any amount of memory."""
    needed = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
    if needed > MOST_COPIES * file_size:
        raise ValueError(f"its tensors take {needed} bytes, but the file has {file_size}")


def _unpickle(stream: io.BytesIO) -> tuple[Any, _Unpickler]:
    """The value of the pickle that begins here, once all its instructions have been looked at."""
    first = stream.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name not in OPCODES:
            raise _RefusedError(f"the instruction {opcode.name}")
        if count >= MOST_OPCODES or (opcode.name == "LONG_BINPUT" and int(argument or 0) > count):
            raise ValueError(f"the instruction {opcode.name} has number {count} and the argument {shown(argument)}")
    unpickler = _Unpickler(stream.getvalue()[first : stream.tell()])
    return unpickler.load(), unpickler


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The value of the archive's pickle, and for each storage its first byte in the file and the number of bytes."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        (described,) = (entry for entry in entries if entry.filename.count("/") == 1 and _leaf(entry) == "data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, as PyTorch's files never are")
        if described.file_size > LARGEST_PICKLE:
            raise ValueError(f"its pickle has {described.file_size} bytes; more than {LARGEST_PICKLE} are not read")
        folder = described.filename.removesuffix("data.pkl")
        byteorder = [archive.read(entry) for entry in entries if entry.filename == f"{folder}byteorder"]
        if byteorder not in ([], [b"little"]):
            raise ValueError("its numbers begin with their largest byte")
        state, _ = _unpickle(io.BytesIO(archive.read(described)))
        length = file.seek(0, io.SEEK_END)
        places = {}
        for entry in entries:
            if entry.filename.startswith(f"{folder}data/"):
                file.seek(entry.header_offset)
                name_length, extra_length = struct.unpack("<26x2H", file.read(30))
                start = entry.header_offset + 30 + name_length + extra_length
                if start + entry.file_size > length:
                    raise ValueError(f"{entry.filename} ends behind the end of the file")
                places[entry.filename.removeprefix(f"{folder}data/")] = start, entry.file_size
    return state, places


def _leaf(entry: zipfile.ZipInfo) -> str:
    return entry.filename.rpartition("/")[2]


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The same from the older layout: five pickles, of which the fourth is the state dict, and then the storages."""
    head = io.BytesIO(file.read(LARGEST_PICKLE))
    if not head.getvalue().startswith(b"\x80"):
        raise ValueError("it does not begin as such a file does")
    values = []
    for _ in range(5):
        value, unpickler = _unpickle(head)
        values.append((value, unpickler.storages))
        if len(values) == 1 and value != MAGIC_NUMBER:
            raise ValueError("it does not begin as such a file does")
    (_, _), (version, _), (system, _), (state, storages), (keys, _) = values
    if version != PROTOCOL_VERSION or system.get("little_endian") is not True:
        raise ValueError(f"it has version {shown(version)}, or numbers that begin with their largest byte")
    places, start, length = {}, head.tell(), file.seek(0, io.SEEK_END)
    for key in keys:
        file.seek(start)
        (numel,) = struct.unpack("<q", file.read(8))
        nbytes = numel * storages[key].dtype.itemsize
        if numel < 0 or start + 8 + nbytes > length:
            raise ValueError(f"a storage of {numel} numbers ends behind the end of the file")
        places[key] = start + 8, nbytes
        start += 8 + nbytes
    return state, places
