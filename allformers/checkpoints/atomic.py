"""Atomic writes of files and folders: a draft beside the target, made durable (fsync), then renamed.

A rename within a folder happens whole or not at all. Whoever is killed before it leaves a draft, whose name begins
with a dot, and what was there before; a full disk leaves not even the draft.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a draft, which takes `path`'s place once the block has ended without an error."""
    draft = _draft(path)
    try:
        yield draft
        _make_durable(draft)
        os.replace(draft, path)
        _make_durable(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write a folder atomically: yield a draft, which is called `path` once the block has ended without an error.

    Raises:
        FileExistsError: `path` exists and is not an empty folder.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} is already there: choose another place, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(path)
    draft.mkdir()
    try:
        yield draft
        for file in draft.iterdir():
            _make_durable(file)
        _make_durable(draft)
        os.replace(draft, path)
        _make_durable(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder with its files; to be killed meanwhile leaves a draft, not half a folder under its name."""
    draft = _draft(path)
    os.replace(path, draft)
    shutil.rmtree(draft)


def remove_drafts(folder: Path) -> None:
    """Remove what processes that were killed have left in a folder. Nobody else may be writing there."""
    for draft in folder.glob(".*.draft"):
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.draft")


def _make_durable(path: Path) -> None:
    """Flush to disk (fsync) a file's contents, or a folder's names, before anything that follows."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
