"""Names and files from outside: what is no checkpoint, no file or no JSON is refused by name, at once."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import allformers
from allformers.checkpoints import CheckpointError
from allformers.checkpoints.hub import LARGEST_JSON, read_json


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 5000,
        "./" + "x" * 5000,
        "a/" + "x" * 300,
        "\ud800",
        "\x1b[2J",
        Path("a\0b"),
        "a\0b",
        Path("x" * 300),
        None,
        5,
        b"x",
    ],
    ids=lambda name: ascii(name)[:12],
)
def test_a_name_of_nothing_is_refused_in_a_line(name: Any) -> None:
    with pytest.raises(CheckpointError) as refusal:
        allformers.load(name)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 300


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (pipe, "device"),
        (Path.mkdir, "folder"),
        (lambda path: path.symlink_to("/dev/zero"), "device"),
        (lambda path: path.symlink_to("nowhere"), "link"),
        (lambda path: path.symlink_to(path), "link"),
    ],
    ids=["pipe", "folder", "device", "link to nothing", "link to itself"],
)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_what_is_no_file_is_not_opened(make: Callable[[Path], Any], culprit: str, file: str, tmp_path: Path) -> None:
    """To read a pipe may take for ever."""
    allformers.load("bundled").save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    make(tmp_path / file)
    with pytest.raises(CheckpointError, match=rf"{file}.*{culprit}"):
        allformers.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
        (b'{"a":' * 100_000, "deep"),
        (b'{"a":' + b"1" * 5000 + b"}", "digits"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
        (b'{"a": 1, "b": {"n": 1, "n": 2}}', "n is there twice"),
        (b'{"a": 1, "a": true}', "a is there twice"),
        (b'{"' + b"x" * 5000 + b'": 1, "' + b"x" * 5000 + b'": 2}', r"xx\.\.\."),
    ],
    ids=["list", "objects", "digits", "byte order mark", "UTF-16", "two values", "true is no 1", "long name"],
)
def test_what_is_no_json_is_refused_by_its_file(content: bytes, culprit: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{culprit}") as refusal:
        read_json(path)
    assert len(str(refusal.value)) < 500


def test_a_name_that_has_one_value_twice_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": [1, 2], "a": [1, 2], "b": NaN, "c": 1e999}')
    assert read_json(tmp_path / "config.json")["a"] == [1, 2]


def test_a_file_larger_than_any_json_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, LARGEST_JSON + 1)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{LARGEST_JSON + 1}"):
        read_json(path)


def test_infinity_is_refused_where_it_matters(tmp_path: Path) -> None:
    allformers.load("bundled").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    for number in ("NaN", "Infinity", "1e999"):
        fields = json.dumps(json.loads(path.read_text()) | {"layer_norm_epsilon": "HERE"})
        (tmp_path / "config.json").write_text(fields.replace('"HERE"', number))
        with pytest.raises(CheckpointError, match=r"config\.json(?s:.*)layer_norm_epsilon"):
            allformers.load(tmp_path)
