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
from allformers.checkpoints.hub import read_json, require

_PIECE = 16 * 2**20


class Stored(NamedTuple):
    """A tensor that has not been read yet; `copy_to` reads it into another of its shape, whatever that one's dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    copy_to: Callable[[Tensor], object]


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


def open_weights(find: Callable[[str], Path | None], name: str | Path) -> dict[str, Stored]:
    """All tensors of a checkpoint, unread: of one file or of several listed in an index; safetensors if there are."""
    for file, read in (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_pickle)):
        path = find(file)
        if path is not None:
            return read(path)
        index = find(f"{file}.index.json")
        if index is not None:
            return _open_shards(index, find, read, name)
    raise CheckpointError(f"{name} has neither model.safetensors nor pytorch_model.bin, whole or in shards")


def _open_shards(
    index: Path,
    find: Callable[[str], Path | None],
    read: Callable[[Path], dict[str, Stored]],
    name: str | Path,
) -> dict[str, Stored]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index} has no weight_map from weights to files")
    shards: dict[str, dict[str, Stored]] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r}, which is not a plain file name")
        shards[file] = read(require(find, file, name))
    absent = sorted(weight for weight, file in places.items() if weight not in shards[file])
    if absent:
        raise CheckpointError(f"{name}: {', '.join(absent)} should be in a shard by {index.name} but is not")
    return {weight: one for shard in shards.values() for weight, one in shard.items()}


def _open_safetensors(path: Path) -> dict[str, Stored]:
    stored = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                dtype = (part[:0] if shape else file.get_tensor(name)).dtype
                stored[name] = Stored(shape, dtype, functools.partial(_copy_safetensor, path, name))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from error
    return stored


def _copy_safetensor(path: Path, name: str, place: Tensor) -> None:
    """Read one tensor into its place, piece by piece.

    The file is mapped, and a page of it counts as this process's memory from its first touch until the file is closed:
    reading pieces of 16 MiB with the file closed in between keeps that from doubling what loading takes.
    """
    rows = max(1, _PIECE * len(place) // max(1, place.nbytes))
    for start in range(0, len(place), rows):
        with safe_open(path, framework="pt") as file:
            place[start : start + rows].copy_(file.get_slice(name)[start : start + rows])


def _open_pickle(path: Path) -> dict[str, Stored]:
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


def in_memory(tensor: Tensor) -> Stored:
    """A tensor that is read already, as one to copy from."""
    return Stored(tuple(tensor.shape), tensor.dtype, lambda place: place.copy_(tensor))
