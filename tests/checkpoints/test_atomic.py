"""Writing: at every moment there is the old or the new, whole, and never a mixture."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from allformers.checkpoints.atomic import atomic_folder, atomic_write, remove_drafts, remove_folder, sha256


def write_file(path: Path) -> None:
    with atomic_write(path) as draft:
        draft.write_text("new")


def write_folder(path: Path) -> None:
    with atomic_folder(path) as draft:
        (draft / "one").write_text("1")
        (draft / "two").write_text("2")


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, how: Callable[[], object]) -> list[str]:
    """Have something happen instead of the call number `at` to the operating system; the calls that are made."""
    calls: list[str] = []

    def counting(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            calls.append(name)
            if len(calls) == at + 1:
                how()
            return original(*arguments, **options)

        return call

    for name in ("fsync", "replace", "open"):
        monkeypatch.setattr(os, name, counting(name, getattr(os, name)))
    return calls


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_takes_its_place_with_the_rights_of_any_new_file(tmp_path: Path) -> None:
    write_file(tmp_path / "file")
    (tmp_path / "usual").touch()
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_written_is_durable_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = interrupt(monkeypatch, 99, full_disk)
    write_file(tmp_path / "file")
    assert calls == ["open", "fsync", "replace", "open", "fsync"]
    calls.clear()
    write_folder(tmp_path / "folder")
    assert calls == ["open", "fsync"] * 3 + ["replace", "open", "fsync"]


@pytest.mark.parametrize("at", range(5))
def test_a_full_disk_leaves_the_old_or_the_new_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    (tmp_path / "file").write_text("old")
    interrupt(monkeypatch, at, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "file")
    assert (tmp_path / "file").read_text() == ("old" if at < 3 else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("at", range(9))
def test_to_be_killed_leaves_the_whole_folder_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    child = os.fork()
    if child == 0:
        interrupt(monkeypatch, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        write_folder(tmp_path / "folder")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    renamed = at > 6
    assert (tmp_path / "folder").exists() is renamed
    remove_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == (["folder"] if renamed else [])
    if renamed:
        assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["one", "two"]
    else:
        write_folder(tmp_path / "folder")


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_folder(tmp_path / "folder")  # an empty one is
    (tmp_path / "folder" / "one").write_text("mine")
    with pytest.raises(FileExistsError, match="folder"):
        write_folder(tmp_path / "folder")
    assert (tmp_path / "folder" / "one").read_text() == "mine"


def test_a_folder_is_removed_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder")
    remove_folder(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
