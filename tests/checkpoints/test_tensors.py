"""Files of tensors are read as their writers meant them, and what lies about its tensors is refused by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from allformers.checkpoints import CheckpointError, hub, tensors
from allformers.checkpoints.hub import resolve_checkpoint
from allformers.checkpoints.tensors import SAFETENSORS_DTYPES, open_weights

Header = dict[str, Any]


def weights() -> dict[str, Tensor]:
    return {"one": torch.arange(6.0).view(2, 3), "two": torch.randn(4).half(), "none": torch.zeros(0, 3)}


def open_folder(folder: Path) -> Any:
    return open_weights(resolve_checkpoint(folder), folder)


def read(tensor: Any, like: Tensor) -> Tensor:
    tensor.read_into(like)
    return like


@pytest.mark.parametrize("dtype", SAFETENSORS_DTYPES.values(), ids=str)
def test_every_dtype_is_read_as_safetensors_wrote_it(dtype: torch.dtype, tmp_path: Path) -> None:
    numbers = torch.tensor([[0.0, 1.0, 2.0], [4.0, 8.0, 16.0]]).to(dtype)
    safetensors.torch.save_file({"matrix": numbers, "scalar": numbers[0, 1].clone()}, tmp_path / "model.safetensors")
    found = open_folder(tmp_path)
    assert (found["matrix"].shape, found["scalar"].shape, found["matrix"].dtype) == ((2, 3), (), dtype)
    for name, expected in (("matrix", numbers), ("scalar", numbers[0, 1])):
        target = read(found[name], torch.empty_like(expected))
        assert torch.equal(target.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize("shape", [(), (5,), (1, 7), (3, 4, 2), (0, 3)], ids=str)
def test_a_tensor_is_read_into_any_memory_of_its_shape(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece or in chunks, in order or not, in its dtype or a wider one; and without memory not at all."""
    monkeypatch.setattr("allformers.checkpoints.tensors._CHUNK_BYTES", 20)
    numbers = torch.randn(shape)
    safetensors.torch.save_file({"x": numbers}, tmp_path / "model.safetensors")
    stored = open_folder(tmp_path)["x"]
    for dtype in (torch.float32, torch.float64):
        straight = torch.empty(shape, dtype=dtype)
        backwards = torch.empty(shape[::-1], dtype=dtype).permute(tuple(reversed(range(len(shape)))))
        for target in (straight, backwards):
            assert torch.equal(read(stored, target), numbers.to(dtype))
    assert read(stored, torch.empty(shape, device="meta")).is_meta


def test_the_header_is_read_once_for_all_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the time grows with the number of tensors, not with its square: DeepSeek-V3 has 91,000."""
    safetensors.torch.save_file({f"x.{i}": torch.tensor([float(i)]) for i in range(30)}, tmp_path / "model.safetensors")
    headers = []
    monkeypatch.setattr(
        tensors, "parse_json", lambda content, path: headers.append(path) or hub.parse_json(content, path)
    )
    found = open_folder(tmp_path)
    for i in range(30):
        assert read(found[f"x.{i}"], torch.empty(1)) == i
    assert headers == [tmp_path / "model.safetensors"]


def edited(whole: bytes, edit: Callable[[Header], Any]) -> bytes:
    """A safetensors file with another header."""
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


@pytest.mark.parametrize(
    ("edit", "culprits"),
    [
        (lambda header: header["one"].update(dtype="F4"), ["one", "'F4'"]),
        (lambda header: header["one"].update(dtype=[]), ["one", "[]"]),
        (lambda header: header["one"].update(shape=[2, 4]), ["one", "[2, 4]", "32"]),
        (lambda header: header["one"].update(shape=[2**62] * 3), ["one"]),
        (lambda header: header["one"].update(shape=[-2, -3]), ["one", "-2"]),
        (lambda header: header["one"].update(shape=[2.0, 3]), ["one", "2.0"]),
        (lambda header: header["one"].update(data_offsets=[0, 2**70]), ["one"]),
        (lambda header: header["one"].update(data_offsets=[4, 28]), ["one", "4"]),
        (lambda header: header["one"].update(data_offsets=[24]), ["one", "[24]"]),
        (lambda header: header.update(one=header["two"]), ["begins", "24"]),
        (lambda header: header.update(one=None), ["one", "None"]),
        (lambda header: header.pop("one"), ["two", "24"]),
        (lambda header: header.update(three={"dtype": "F32", "shape": [1], "data_offsets": [32, 36]}), ["truncated"]),
        (lambda header: header.update(__metadata__=[]), ["__metadata__"]),
        (lambda header: header.update({"x" * 5000: header.pop("one")}), ["xxx..."]),
        (lambda header: header.update({"\x1b[2J": header.pop("one")}), ["\\x1b[2J"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_header_that_does_not_describe_its_file_is_refused(
    edit: Callable[[Header], Any], culprits: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(weights(), path)
    assert open_folder(tmp_path).keys() == weights().keys()
    path.write_bytes(edited(path.read_bytes(), edit))
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as refusal:
        open_folder(tmp_path)
    assert len(str(refusal.value)) < 500
    assert all(culprit in str(refusal.value) for culprit in culprits)


@pytest.mark.parametrize("length", [0, 1, 10**8, 2**40, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(weights(), path)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_folder(tmp_path)


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    for shard in ("a.safetensors", "b.safetensors"):
        safetensors.torch.save_file(weights(), tmp_path / shard)
    index = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors", "none": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"one.*b\.safetensors"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "file", ["", ".", "..", "a/b", "a\\b", "x" * 300, "\0", "\ud800", "\n", "C:x", "/etc/passwd"], ids=ascii
)
def test_an_index_names_plain_files_only(file: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"one": file}}))
    with pytest.raises(CheckpointError, match=re.escape(repr(file)[:30])) as refusal:
        open_folder(tmp_path)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 400
