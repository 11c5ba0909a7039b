"""Resolve the files of a checkpoint: in a folder, in this package, or on the Hugging Face hub."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.atomic import locate
from allformers.messages import escaped, shown, shown_name

BUNDLED = Path(__file__).parents[1] / "bundled"
"""The checkpoint that comes with this package: a small GPT-2, trained by `allformers train`."""

LARGEST_JSON = 64 * 2**20
"""The bytes of JSON that are read: twice the largest published tokenizer, and seven times DeepSeek-V3's index."""


def is_hub_name(name: str | Path) -> bool:
    """True if a name can only mean a model on the hub: it is not a path, and nothing lies there."""
    path = Path(name)
    is_path = isinstance(name, Path) or path.is_absolute() or name.startswith(".") or name.count("/") > 1
    try:
        return name != "bundled" and not is_path and not path.exists()
    except OSError:  # too long for a path, or not to be looked at
        return not is_path


def resolve_checkpoint(name: str | Path, revision: str | None = None) -> Callable[[str], Path | None]:
    """Return a function from a file's name to its path on this machine, or to None if the checkpoint has no such file.

    Args:
        name: a folder, a model's name on the hub, or "bundled" for the model that comes with this package.
        revision: a branch, tag or commit on the hub.

    Raises:
        CheckpointError: there is no such folder (or, when the function is called, no such model on the hub), or the
            file is something else: a folder, a pipe, a link to nothing.
    """
    if not isinstance(name, str | Path) or not str(name):
        raise CheckpointError(f"give a folder, or the name of a model on the Hugging Face hub, not {shown(name)}")
    folder = BUNDLED if name == "bundled" else Path(name)
    try:
        if folder.is_dir():
            return functools.partial(_file_in, folder)
        if folder.is_file():
            raise CheckpointError(f"{name} is a file: give the folder that holds it")
        if is_hub_name(name):
            return functools.partial(_download, str(name), revision)
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"there can be no folder {shown_name(name)}: {_reason(error)}") from error
    raise CheckpointError(f"there is no folder {escaped(str(name))}")


def _file_in(folder: Path, file: str) -> Path | None:
    """The path of a file in a folder, or None. Nothing else than a file is opened: to read a pipe may never end."""
    try:
        path = locate(folder, file)
        if path.is_file():
            return path
        if path.is_symlink() and not path.exists():
            raise CheckpointError(f"{path} is a link to a file that is not there")
        if path.exists():
            raise CheckpointError(f"{path} should be a file, and is a folder or a device")
    except OSError as error:
        raise CheckpointError(f"{folder}: {shown_name(file)} cannot be opened: {_reason(error)}") from error
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _download(name: str, revision: str | None, file: str) -> Path | None:
    """Fetch one file of a model on the hub, or find it in the hub's cache."""
    from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, try_to_load_from_cache

    model = shown_name(name)
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        if try_to_load_from_cache(name, file, revision=revision) is _CACHED_NO_EXIST:  # known not to be there
            return None
        raise CheckpointError(
            f"{model} is neither a folder here nor in the hub's cache, and the Hugging Face hub cannot be reached"
        ) from error
    except errors.RemoteEntryNotFoundError:
        return None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        at = f" with revision {shown_name(revision)}" if revision else ""
        raise CheckpointError(f"{model}{at} is neither a folder here nor a model on the Hugging Face hub") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"downloading {shown_name(file)} of {model} failed: {error}") from error


def require_file(resolve_file: Callable[[str], Path | None], file: str, name: str | Path) -> Path:
    """The path of a file that the checkpoint must have.

    Raises:
        CheckpointError: the checkpoint has no such file.
    """
    path = resolve_file(file)
    if path is None:
        raise CheckpointError(f"{name} has no {shown_name(file)}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: there is no such file, it is larger than `LARGEST_JSON`, or as for `parse_json`.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} cannot be read as JSON: there is no such file")
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise CheckpointError(f"{path} has {size} bytes; JSON of more than {LARGEST_JSON} is not read")
        with path.open("rb") as file:
            content = file.read(LARGEST_JSON)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {_reason(error)}") from error
    return parse_json(content, path)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The object that JSON from a file describes.

    NaN and infinity are read as the reference reads them, though they are no JSON: a field's type refuses them where
    they matter.

    Raises:
        CheckpointError: it is not JSON in UTF-8, nested too deeply, not an object, or it gives one name two values.
    """
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: it is nested too deeply") from error
    except (ValueError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} should hold a JSON object, not a {type(found).__name__}")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file. A name that has two values is refused: which one is meant is anyone's guess."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            last = found[name]
            if last is not value and (type(last) is not type(value) or last != value):
                raise ValueError(f"{shown_name(name)} is there twice, as {shown(value)} and as {shown(last)}")
    return found
