"""Files of tensors: safetensors and PyTorch's pickles, whole or in shards, opened without being read."""

import functools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.hub import read_json, require_file

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
    shards: dict[str, dict[str, LazyTensor]] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r}, which is not a plain file name")
        shards[file] = read(require_file(resolve_file, file, name))
    missing = sorted(weight for weight, file in weight_map.items() if weight not in shards[file])
    if missing:
        raise CheckpointError(f"{name}: {', '.join(missing)} should be in a shard by {index.name} but is not")
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                dtype = (part[:0] if shape else file.get_tensor(name)).dtype
                tensors[name] = LazyTensor(shape, dtype, functools.partial(_read_safetensor, path, name))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from error
    return tensors


def _read_safetensor(path: Path, name: str, target: Tensor) -> None:
    """Read one tensor into `target`, chunk by chunk.

    The file is mapped, and a page of it counts as this process's memory from its first touch until the file is closed:
    reading chunks of 16 MiB with the file closed in between keeps that from doubling what loading takes.
    """
    if not target.shape:
        with safe_open(path, framework="pt") as file:
            target.copy_(file.get_tensor(name))
        return
    rows = max(1, _CHUNK_BYTES * len(target) // max(1, target.nbytes))
    for start in range(0, len(target), rows):
        with safe_open(path, framework="pt") as file:
            target[start : start + rows].copy_(file.get_slice(name)[start : start + rows])


def _open_pickle(path: Path) -> dict[str, LazyTensor]:
    try:
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, and reading that could run code: refused. "
            "Ask for the checkpoint as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} should hold a dictionary of tensors")
    return {name: in_memory(tensor) for name, tensor in state.items()}


def in_memory(tensor: Tensor) -> LazyTensor:
    """A tensor that is in memory already, as a `LazyTensor`."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda target: target.copy_(tensor))
