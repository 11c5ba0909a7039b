"""Files of tensors: safetensors and PyTorch's pickles, whole or in shards, opened without being read."""

import functools
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.hub import parse_json, read_json, require_file
from allformers.checkpoints.pickles import StoredTensor, are_sizes, contiguous_stride, read_pickle
from allformers.messages import shown, shown_name, shown_names

LARGEST_HEADER = 32 * 2**20
"""The bytes of a safetensors header that are read: DeepSeek-V3's 91,000 tensors take 12 million in one file."""

LONGEST_NAME = 200
"""The letters of a weight's name, twice those of the longest one, which three wrappers have added to."""

SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""The names that safetensors gives to types of numbers."""

_CHUNK_BYTES = 16 * 2**20


class LazyTensor(NamedTuple):
    """A tensor in a file that is not read yet; `read_into` copies it into a tensor of its shape and of any dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read_into: Callable[[Tensor], object]


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, with the rights that other new files get: its own writer lets only the owner read.

    Raises:
        OSError: the disk is full, or the place cannot be written to.
    """
    path.touch()
    rights = path.stat().st_mode
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}") from error
    path.chmod(rights)


def open_weights(resolve_file: Callable[[str], Path | None], name: str | Path) -> dict[str, LazyTensor]:
    """All tensors of a checkpoint, unread: of one file or of several listed in an index; safetensors if there are."""
    for file, read in (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_pickle)):
        path = resolve_file(file)
        if path is not None:
            return read(path)
        index = resolve_file(f"{file}.index.json")
        if index is not None:
            return _open_shards(index, resolve_file, read, name)
    raise CheckpointError(f"{name} has neither model.safetensors nor pytorch_model.bin, whole or in shards")


def _open_shards(
    index: Path,
    resolve_file: Callable[[str], Path | None],
    read: Callable[[Path], dict[str, LazyTensor]],
    name: str | Path,
) -> dict[str, LazyTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from weights to files")
    tensors: dict[str, LazyTensor] = {}
    shard_of: dict[str, str] = {}
    for file in sorted(set(weight_map.values())):
        if not _is_plain(file):
            raise CheckpointError(f"{index} names {shown(file)}, which is not a plain file name")
        shard = read(require_file(resolve_file, file, name))
        twice = sorted(shard.keys() & tensors.keys())
        if twice:
            raise CheckpointError(f"{name}: {shown_names(twice)} in both {shown_name(file)} and another shard")
        tensors |= shard
        shard_of |= dict.fromkeys(shard, file)
    missing = sorted(weight for weight, file in weight_map.items() if shard_of.get(weight) != file)
    if missing:
        raise CheckpointError(f"{name}: {shown_names(missing)} should be in a shard by {index.name} but is not")
    return tensors


def _is_plain(file: str) -> bool:
    """True for a name that can only be a file's in the same folder."""
    return file.isprintable() and not set(file) & set("/\\:") and file not in {"", ".", ".."} and len(file) <= 255


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    return _lazy(path, read_header(path))


def _open_pickle(path: Path) -> dict[str, LazyTensor]:
    return _lazy(path, read_pickle(path))


def _lazy(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, LazyTensor]:
    """The tensors of a file. Names that are no weight's are refused here, before anything lists or compares them."""
    odd = [name for name in tensors if len(name) > LONGEST_NAME or not name.isprintable()]
    if odd:
        raise CheckpointError(f"{path} has weights with names that no model gives: {shown_names(odd)}")
    return {
        name: LazyTensor(stored.shape, stored.dtype, functools.partial(_read_stored, path, stored))
        for name, stored in tensors.items()
    }


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a safetensors file lies, by its header: eight bytes with its length, JSON, the numbers.

    The header is read here, and not by the package safetensors, because that one reads all of it again for each
    tensor: with 91,000 tensors that takes hours.

    Raises:
        CheckpointError: it is not a safetensors file, or its tensors are not one behind the other until its end.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(f"{path} is truncated or not a safetensors file: it has {size} bytes")
            if length > LARGEST_HEADER:
                raise CheckpointError(f"{path} has a header of {length} bytes; more than {LARGEST_HEADER} are not read")
            header = parse_json(file.read(length), path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ should give names to strings, and is {shown(metadata)}")
    tensors = {name: _header_entry(path, name, entry) for name, entry in header.items()}
    place = 0
    for name, tensor in sorted(tensors.items(), key=lambda pair: (pair[1].start, math.prod(pair[1].shape))):
        if tensor.start != place:
            raise CheckpointError(f"{path}: {shown_name(name)} begins at byte {tensor.start}, not at {place}")
        place += math.prod(tensor.shape) * tensor.dtype.itemsize
    if 8 + length + place != size:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file: it has {size} bytes, but its header and tensors take "
            f"{8 + length + place}"
        )
    return {name: tensor._replace(start=8 + length + tensor.start) for name, tensor in tensors.items()}


def _header_entry(path: Path, name: str, entry: Any) -> StoredTensor:
    """One tensor of a header; its start is counted from the end of the header."""
    known = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = known.get("dtype"), known.get("shape"), known.get("data_offsets")
    if not (isinstance(dtype, str) and are_sizes(shape) and are_sizes(offsets) and len(offsets) == 2):
        raise CheckpointError(f"{path}: {shown_name(name)} needs a dtype, a shape and data_offsets, not {shown(entry)}")
    if dtype not in SAFETENSORS_DTYPES:
        raise CheckpointError(
            f"{path}: {shown_name(name)} has the dtype {shown(dtype)}; known are {', '.join(SAFETENSORS_DTYPES)}"
        )
    nbytes = math.prod(shape) * SAFETENSORS_DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise CheckpointError(
            f"{path}: {shown_name(name)} of shape {shown(shape)} and dtype {dtype} takes {nbytes} bytes, but its "
            f"data_offsets are {shown(offsets)}"
        )
    return StoredTensor(offsets[0], SAFETENSORS_DTYPES[dtype], tuple(shape), contiguous_stride(shape))


def _read_stored(path: Path, stored: StoredTensor, target: Tensor) -> None:
    """Read one tensor into `target`: straight into its memory where it lies there as in the file, else in chunks."""
    if target.is_meta:
        return
    in_order = all(
        size == 1 or step == full
        for size, step, full in zip(stored.shape, stored.stride, contiguous_stride(stored.shape), strict=True)
    )
    try:
        with path.open("rb") as file:
            file.seek(stored.start)
            if in_order and target.is_cpu and target.dtype == stored.dtype and target.is_contiguous():
                _fill(target, file)
            elif in_order and target.dim():
                rows = max(1, _CHUNK_BYTES // max(1, stored.dtype.itemsize * math.prod(stored.shape[1:])))
                for chunk in target.split(rows):
                    chunk.copy_(_fill(torch.empty(chunk.shape, dtype=stored.dtype), file))
            else:
                reach = 1 + sum((size - 1) * step for size, step in zip(stored.shape, stored.stride, strict=True))
                numbers = _fill(torch.empty(reach if target.numel() else 0, dtype=stored.dtype), file)
                target.copy_(numbers.as_strided(stored.shape, stored.stride))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _fill(tensor: Tensor, file: io.BufferedReader) -> Tensor:
    """Read a contiguous tensor's numbers from where the file stands."""
    memory: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    if file.readinto(memory) != memory.size:
        raise CheckpointError(f"{file.name} has become shorter since it was opened")
    return tensor


def in_memory(tensor: Tensor) -> LazyTensor:
    """A tensor that is in memory already, as a `LazyTensor`."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda target: target.copy_(tensor))
