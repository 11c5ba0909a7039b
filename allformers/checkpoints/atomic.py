"""Files and folders that are written whole or not at all, also by several processes at once.

What is new is written as a draft, in a hidden folder beside its place, and made durable (fsync) before anything is
renamed. A rename happens whole or not at all, so a file (`atomic_write`) or a new folder (`atomic_folder`) is there
from its rename on. Several files of a folder that is there already (`atomic_update`) take more steps:

    1. write    all files into a draft inside the folder; fsync each file, then the draft
    2. lock     the folder, so that no other process saves there or loads from it
    3. commit   rename the draft to `JOURNAL`; fsync the folder
    4. finish   remove what is superseded, move each file from the journal to its place, fsync the folder, and remove
                the journal, which is empty by then

A kill in 1 or 2 leaves the old files, and a draft that nobody reads. From 3 on the new files count, although some may
still be in the journal: `locate` looks there first, and the next load or save repeats 4, which goes on where it was
interrupted. Loads stand inside `reading`, so that no file is moved between two reads of one load.

Locks are those of flock, on the folders themselves. They end with the process that holds them, and need no file, so
they work in folders that are read-only. A draft is locked by its writer; one that is not was left by a killed process,
and the next writer removes it. Windows and some network file systems have no such locks. A kill leaves the old or the
new there too; but two saves at once, or a load during 4, are not kept apart, and drafts of killed processes stay.
"""

import contextlib
import hashlib
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

JOURNAL = ".allformers.journal"
"""The folder, inside the one that is saved to, of files that are saved but still have to be moved to their places."""

SUPERSEDED = {
    "model.safetensors": ("model.safetensors.index.json", "model-[0-9]*-of-[0-9]*.safetensors"),
    "tokenizer_config.json": (
        *("tokenizer.json", "added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
        *("vocab.txt", "tokenizer.model", "spiece.model", "source.spm", "target.spm"),
    ),
}
"""What a new file takes the place of, besides the old one: the weights in shards; the files of another tokenizer."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a draft, which takes `path`'s place once the block has ended without an error."""
    with _draft(path.parent, path.name) as draft:
        yield draft
        _make_durable(draft)
        os.replace(draft, path)
        _make_durable(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write a folder atomically: yield a draft, which is called `path` once the block has ended without an error.

    Raises:
        FileExistsError: `path` exists and is not an empty folder.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} is already there: choose another place, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _draft(path.parent) as draft:
        draft.mkdir()
        yield draft
        _make_files_durable(draft)
        os.replace(draft, path)
        _make_durable(path.parent)


@contextlib.contextmanager
def atomic_update(path: str | Path) -> Iterator[Path]:
    """Write files of a folder, all or none: yield a draft, whose files the folder has once the block has ended.

    The folder is made if there is none; its other files stay, except those that `SUPERSEDED` lists.

    Raises:
        OSError: the folder is a file, a folder lies where a file is to be, or it cannot be written to. Nothing changes.
    """
    folder = Path(os.path.realpath(path))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{path} is a file, not a folder")
    is_new = not folder.exists()
    if is_new:
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _draft(folder.parent if is_new else folder) as draft:
        draft.mkdir()
        yield draft
        _make_files_durable(draft)
        if is_new and _rename_to_new(draft, folder):
            return
        with _lock(folder):
            _finish(folder)
            for name in os.listdir(draft):
                if (folder / name).is_dir():
                    raise IsADirectoryError(f"{path} has a folder {name}, where a file of that name is to be saved")
            os.replace(draft, folder / JOURNAL)
            _make_durable(folder)
            _finish(folder)


def _rename_to_new(draft: Path, folder: Path) -> bool:
    """Rename a draft to a new folder; False if another process has made the folder meanwhile."""
    try:
        os.replace(draft, folder)
    except OSError:
        if folder.is_dir():
            return False
        raise
    _make_durable(folder.parent)
    return True


@contextlib.contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Load from a folder: first finish a save that was interrupted there, then let none begin until the block ends.

    What is not a folder on this machine, such as a name on the hub, is left to the block.
    """
    if not isinstance(folder, str | os.PathLike) or not os.path.isdir(folder):
        yield
        return
    finish_update(Path(folder))
    with _lock(Path(folder), shared=True):
        yield


def finish_update(folder: Path) -> None:
    """Finish an `atomic_update` that was interrupted after its commit, if the folder is free and can be written to."""
    if (folder / JOURNAL).is_dir():
        with contextlib.suppress(OSError), _lock(folder, wait=False):
            _finish(folder)


def locate(folder: Path, name: str) -> Path:
    """The place of a file of a folder, if there is such a file: its own, or in the journal while it is in there."""
    pending = _pending(folder)
    is_there = name in pending or folder / name in _superseded(folder, pending)
    return folder / JOURNAL / name if is_there else folder / name


def _finish(folder: Path) -> None:
    """Move the files of the journal, if there is one, to their places. The folder is locked."""
    journal, pending = folder / JOURNAL, _pending(folder)
    for path in _superseded(folder, pending):
        path.unlink()
    # A file that supersedes others goes first: while it is in the journal, so are all that came with it.
    for name in sorted(pending, key=lambda name: name not in SUPERSEDED):
        os.replace(journal / name, folder / name)
    if journal.is_dir():
        _make_durable(folder)
        os.rmdir(journal)


def _pending(folder: Path) -> list[str]:
    """The names of files in the journal; empty if there is none. A link of its name, to anywhere, is none of ours."""
    try:
        return [] if (folder / JOURNAL).is_symlink() else os.listdir(folder / JOURNAL)
    except OSError:
        return []


def _superseded(folder: Path, names: Collection[str]) -> list[Path]:
    """The files of a folder that new files with these names supersede."""
    patterns = [pattern for name in names for pattern in SUPERSEDED.get(name, ())]
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    return [path for path in found if path.is_file() and path.name not in names]


def remove_folder(path: Path) -> None:
    """Remove a folder with its files; to be killed meanwhile leaves a draft, not half a folder under its name."""
    with _draft(path.parent) as draft:
        os.replace(path, draft)


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes have left in a folder; the draft of a process that is alive is locked, and stays."""
    for draft in folder.glob(".allformers-*.draft"):
        with contextlib.suppress(BlockingIOError), _lock(draft, wait=False) as locked:
            if locked:
                shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep a folder to this process until the block ends, or the process does.

    Raises:
        BlockingIOError: another process has it; the message says which.
    """
    owner, name = folder / ".process", ""
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(_lock(folder, wait=False))
        except BlockingIOError:
            with contextlib.suppress(OSError):
                name = owner.read_text(encoding="utf-8")
            raise BlockingIOError(name or "another process") from None
        owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)


@contextlib.contextmanager
def _draft(parent: Path, name: str = "draft") -> Iterator[Path]:
    """Yield a place for a draft, in a hidden folder that is locked until the block ends, and then removed."""
    remove_drafts(parent)
    with contextlib.ExitStack() as locks:
        while True:
            hidden = parent / f".allformers-{secrets.token_hex(8)}.draft"
            hidden.mkdir()
            locks.enter_context(_lock(hidden))
            if hidden.is_dir():  # else another process took it for a dead one's, before it was locked
                break
        try:
            yield hidden / name
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Lock a folder until the block ends or the process does; False where there are no locks.

    Raises:
        BlockingIOError: another process or thread has locked it, and `wait` is False.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # it is gone, or may not be opened, as no folder may on Windows
        yield False
        return
    try:
        yield _flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    finally:
        _flock(handle, fcntl.LOCK_UN)  # a process that was forked meanwhile has a copy of the handle, and keeps it open
        os.close(handle)


def _flock(handle: int, operation: int) -> bool:
    """Lock or unlock; False on a file system that has no locks."""
    try:
        fcntl.flock(handle, operation)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _make_files_durable(folder: Path) -> None:
    """Flush to disk all files of a folder, then their names."""
    for file in folder.iterdir():
        _make_durable(file)
    _make_durable(folder)


def _make_durable(path: Path) -> None:
    """Flush to disk (fsync) a file's contents, or a folder's names, before anything that follows."""
    if sys.platform == "win32" and path.is_dir():
        return  # it opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
