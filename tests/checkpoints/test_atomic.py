"""Writing: at every moment there is the old or the new, whole, and never a mixture."""

import contextlib
import errno
import itertools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from allformers.checkpoints import atomic
from allformers.checkpoints.atomic import (
    JOURNAL,
    atomic_folder,
    atomic_update,
    atomic_write,
    exclusive,
    locate,
    reading,
    remove_drafts,
    remove_folder,
    sha256,
)

WEIGHTS, SHARD, INDEX = "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"
NAMES = ("config.json", WEIGHTS, "tokenizer_config.json")


def write_file(path: Path) -> None:
    with atomic_write(path) as draft:
        draft.write_text("new")


def write_folder(path: Path) -> None:
    with atomic_folder(path) as draft:
        (draft / "one").write_text("1")
        (draft / "two").write_text("2")


def save(folder: Path, text: str) -> None:
    with atomic_update(folder) as draft:
        for name in NAMES:
            (draft / name).write_text(text)


def load(folder: Path) -> set[str]:
    """What a checkpoint's files say: one word, if they are of one save."""
    with reading(folder):
        found = {locate(folder, name).read_text() for name in NAMES}
        if locate(folder, "tokenizer.json").exists():
            found.add("old")
        return found


def old_checkpoint(folder: Path) -> Path:
    """A checkpoint with shards, a tokenizer that has more files than the next one, and files of somebody's own."""
    folder.mkdir()
    for name in (*NAMES, SHARD, INDEX, "tokenizer.json", "vocab.json"):
        (folder / name).write_text("old")
    for name in ("notes.txt", "model-of-mine.safetensors", "pytorch_model.bin"):
        (folder / name).write_text("mine")
    return folder


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


OWN = {"notes.txt", "model-of-mine.safetensors", "pytorch_model.bin"}


def interrupt(
    monkeypatch: pytest.MonkeyPatch, at: int, how: Callable[[], object], names: tuple[str, ...] = ("fsync", "replace")
) -> list[str]:
    """Have something happen instead of the call number `at` to the operating system; the calls that are made."""
    calls: list[str] = []

    def counting(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            calls.append(name)
            if len(calls) == at + 1:
                how()
            return original(*arguments, **options)

        return call

    for name in names:
        monkeypatch.setattr(os, name, counting(name, getattr(os, name)))
    return calls


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Killed(BaseException):
    """What no code of a process that was killed can catch."""


def killed(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], object]) -> bool:
    """Act up to the call number `at`; from there on nothing changes, as after a kill. False if it ended before."""
    calls = 0

    def until_then(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > at:
                raise Killed
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("mkdir", "fsync", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, until_then(getattr(os, name)))
        with contextlib.suppress(Killed):
            act()
            return False
    return True


# A file, or a new folder


def test_a_file_takes_its_place_with_the_rights_of_any_new_file(tmp_path: Path) -> None:
    write_file(tmp_path / "file")
    (tmp_path / "usual").touch()
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_may_have_the_longest_name_that_there_is(tmp_path: Path) -> None:
    write_file(tmp_path / ("x" * 255))
    assert listing(tmp_path) == {"x" * 255}


def test_what_was_written_is_durable_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = interrupt(monkeypatch, 99, full_disk)
    write_file(tmp_path / "file")
    assert calls == ["fsync", "replace", "fsync"]
    calls.clear()
    write_folder(tmp_path / "folder")
    assert calls == ["fsync"] * 3 + ["replace", "fsync"]
    calls.clear()
    save(tmp_path / "new", "new")
    assert calls == ["fsync"] * 4 + ["replace", "fsync"]
    calls.clear()
    save(tmp_path / "new", "newer")  # the commit is durable before the moves, and these before the journal goes
    assert calls == ["fsync"] * 4 + ["replace", "fsync"] + ["replace"] * 3 + ["fsync"]


@pytest.mark.parametrize("at", range(3))
def test_a_full_disk_leaves_the_old_or_the_new_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    (tmp_path / "file").write_text("old")
    interrupt(monkeypatch, at, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "file")
    assert (tmp_path / "file").read_text() == ("old" if at < 2 else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_to_be_killed_leaves_the_whole_folder_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for at in itertools.count():
        folder = tmp_path / str(at) / "folder"
        folder.parent.mkdir()
        if not killed(monkeypatch, at, lambda folder=folder: write_folder(folder)):
            break
        found.add(folder.exists())
        remove_drafts(folder.parent)
        assert listing(folder.parent) == ({"folder"} if folder.exists() else set())
        if not folder.exists():
            write_folder(folder)
        assert listing(folder) == {"one", "two"}
    assert found == {True, False}


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


# Several files of a folder that is there


def test_new_files_supersede_the_old_ones_and_nobody_elses(tmp_path: Path) -> None:
    folder = old_checkpoint(tmp_path / "folder")
    save(folder, "new")
    assert load(folder) == {"new"}
    assert listing(folder) == {*NAMES, *OWN}
    assert all((folder / name).read_text() == "mine" for name in OWN)
    save(tmp_path / "a" / "new" / "folder", "new")
    assert listing(tmp_path / "a" / "new" / "folder") == {*NAMES}
    assert listing(tmp_path / "a" / "new") == {"folder"}


def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at in itertools.count():
        folder = old_checkpoint(tmp_path / str(at))
        if not killed(monkeypatch, at, lambda folder=folder: save(folder, "new")):
            break
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "_finish", lambda folder: full_disk())  # as in a folder that is read-only
            found.append(load(folder))
        if at % 2:  # a load finishes what was left, and so does a save, which removes the draft too
            assert load(folder) == found[-1]
            assert not (folder / JOURNAL).exists()
        save(folder, "newer")
        assert load(folder) == {"newer"}
        assert listing(folder) == {*NAMES, *OWN}
    changes = [(before, after) for before, after in itertools.pairwise(found) if before != after]
    assert changes == [({"old"}, {"new"})]
    assert len(found) > 15


def test_a_failure_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at in range(12):
        folder = old_checkpoint(tmp_path / str(at))
        with monkeypatch.context() as patch:
            interrupt(patch, at, full_disk, ("mkdir", "fsync", "replace"))
            with pytest.raises(OSError, match="No space left"):
                save(folder, "new")
        found.append(load(folder))
        assert not list(folder.glob(".*"))
    changes = [(before, after) for before, after in itertools.pairwise(found) if before != after]
    assert changes == [({"old"}, {"new"})]


def test_several_savers_and_loads_at_once_never_mix(tmp_path: Path) -> None:
    folder, faults, ended = tmp_path / "folder", [], threading.Event()
    save(folder, "0")

    def saving(text: str) -> None:
        try:
            for _ in range(10):
                save(folder, text)
        except OSError as error:
            faults.append(str(error))

    def loading() -> None:
        while not ended.is_set():
            if len(found := load(folder)) != 1:
                faults.append(str(found))

    savers = [threading.Thread(target=saving, args=(str(number),)) for number in range(3)]
    reader = threading.Thread(target=loading)
    for thread in (*savers, reader):
        thread.start()
    for thread in savers:
        thread.join()
    ended.set()
    reader.join()
    assert not faults
    assert listing(folder) == {*NAMES}


def test_a_save_waits_for_loads_and_a_load_for_the_commit(tmp_path: Path) -> None:
    save(tmp_path, "old")
    saver = threading.Thread(target=save, args=(tmp_path, "new"))
    with reading(tmp_path), reading(tmp_path):  # a load may be part of another
        saver.start()
        saver.join(0.05)
        assert saver.is_alive()
        assert load(tmp_path) == {"old"}
    saver.join()
    assert load(tmp_path) == {"new"}


def test_drafts_of_those_who_write_stay_and_others_go(tmp_path: Path) -> None:
    dead, own = tmp_path / ".allformers-0123.draft", tmp_path / ".notes.draft"
    dead.mkdir()
    own.mkdir()
    with atomic_update(tmp_path) as draft:
        assert not dead.exists()
        save(tmp_path, "meanwhile")
        assert draft.exists()
        (draft / "more").write_text("more")
    assert listing(tmp_path) == {*NAMES, "more", own.name}


def test_savers_of_one_new_folder_do_not_get_into_each_others_way(tmp_path: Path) -> None:
    with atomic_update(tmp_path / "folder") as draft:
        (draft / "one").write_text("1")
        save(tmp_path / "folder", "new")
    assert listing(tmp_path / "folder") == {"one", *NAMES}
    assert listing(tmp_path) == {"folder"}


def test_acts_within_an_act_are_one(tmp_path: Path) -> None:
    folder = old_checkpoint(tmp_path / "folder")
    with contextlib.suppress(KeyboardInterrupt), atomic_update(folder) as draft:
        save(draft, "new")
        raise KeyboardInterrupt
    assert load(folder) == {"old"}
    with atomic_update(folder) as draft:
        save(draft, "new")
        (draft / "more").write_text("more")
    assert load(folder) == {"new"}
    assert listing(folder) == {*NAMES, *OWN, "more"}


def test_what_lies_in_the_way_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = old_checkpoint(tmp_path / "folder")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    before = listing(folder)
    with pytest.raises(IsADirectoryError, match=WEIGHTS):
        save(folder, "new")
    assert listing(folder) == before
    assert (folder / "config.json").read_text() == "old"
    with pytest.raises(NotADirectoryError, match="notes"):
        save(folder / "notes.txt", "new")
    with pytest.raises(OSError, match="notes"):
        save(folder / "notes.txt" / "below", "new")
    with pytest.raises(OSError, match="name too long"):
        save(tmp_path / ("x" * 256), "new")
    assert listing(tmp_path) == {"folder"}


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    for text in ("first", "second"):  # there is no such folder yet
        save(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert load(tmp_path / "real") == load(tmp_path / "link") == {text}
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "real" / WEIGHTS).unlink()
    (tmp_path / "real" / WEIGHTS).symlink_to(tmp_path / "outside")  # as in the hub's cache
    save(tmp_path / "link", "third")
    assert load(tmp_path / "link") == {"third"}
    assert (tmp_path / "outside").read_text() == "mine"


def test_without_locks_files_are_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(atomic.fcntl, "flock", unsupported)
    folder = old_checkpoint(tmp_path / "folder")
    (folder / ".allformers-0123.draft").mkdir()  # nobody knows whether its writer is alive
    save(folder, "new")
    assert load(folder) == {"new"}
    assert listing(folder) == {*NAMES, *OWN, ".allformers-0123.draft"}
    with exclusive(folder), exclusive(folder):
        pass


# To keep others out


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_folder_is_kept_until_its_process_ends(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(BlockingIOError, match=rf"process {os.getpid()}\b"):
        exclusive(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    child = os.fork()
    if child == 0:
        with exclusive(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with exclusive(tmp_path):
        assert (tmp_path / ".process").read_text().startswith(f"process {os.getpid()} ")
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
