"""Resolve the files of a checkpoint: in a folder, in this package, or on the Hugging Face hub."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.atomic import locate

BUNDLED = Path(__file__).parents[1] / "bundled"
"""The checkpoint that comes with this package: a small GPT-2, trained by `allformers train`."""


def is_hub_name(name: str | Path) -> bool:
    """True if a name can only mean a model on the hub: it is not a path, and nothing lies there."""
    path = Path(name)
    is_path = isinstance(name, Path) or path.is_absolute() or name.startswith(".") or name.count("/") > 1
    return name != "bundled" and not is_path and not path.exists()


def resolve_checkpoint(name: str | Path, revision: str | None = None) -> Callable[[str], Path | None]:
    """Return a function from a file's name to its path on this machine, or to None if the checkpoint has no such file.

    Args:
        name: a folder, a model's name on the hub, or "bundled" for the model that comes with this package.
        revision: a branch, tag or commit on the hub.

    Raises:
        CheckpointError: there is no such folder (or, when the function is called, no such model on the hub).
    """
    folder = BUNDLED if name == "bundled" else Path(name)
    if folder.is_dir():
        return lambda file: path if (path := locate(folder, file)).is_file() else None
    if folder.is_file():
        raise CheckpointError(f"{name} is a file: give the folder that holds it")
    if not is_hub_name(name):
        raise CheckpointError(f"there is no folder {name}")
    return functools.partial(_download, str(name), revision)


def _download(name: str, revision: str | None, file: str) -> Path | None:
    """Fetch one file of a model on the hub, or find it in the hub's cache."""
    from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, try_to_load_from_cache

    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        if try_to_load_from_cache(name, file, revision=revision) is _CACHED_NO_EXIST:  # known not to be there
            return None
        raise CheckpointError(
            f"{name} is neither a folder here nor in the hub's cache, and the Hugging Face hub cannot be reached"
        ) from error
    except errors.RemoteEntryNotFoundError:
        return None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        at = f" with revision {revision}" if revision else ""
        raise CheckpointError(f"{name}{at} is neither a folder here nor a model on the Hugging Face hub") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"downloading {file} of {name} failed: {error}") from error


def require_file(resolve_file: Callable[[str], Path | None], file: str, name: str | Path) -> Path:
    """The path of a file that the checkpoint must have.

    Raises:
        CheckpointError: the checkpoint has no such file.
    """
    path = resolve_file(file)
    if path is None:
        raise CheckpointError(f"{name} has no {file}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: it is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object, not a {type(content).__name__}")
    return content
