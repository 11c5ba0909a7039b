"""Pickles are read as PyTorch reads them, and none is run: not even what it allows takes memory or time."""

import collections
import io
import os
import pickletools
import re
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.hub import resolve_checkpoint
from allformers.checkpoints.pickles import read_pickle
from allformers.checkpoints.tensors import open_weights

LAYOUTS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def state_dict() -> dict[str, Tensor]:
    """Tensors of every kind that a state dict holds."""
    base = torch.arange(40.0)
    state = collections.OrderedDict(
        plain=torch.randn(2, 3),
        parameter=torch.nn.Parameter(torch.randn(2)),
        transposed=torch.randn(2, 3).t(),
        part=base[3:9].view(2, 3),
        every_third=base[4::3],
        columns=base.view(4, 10)[:, 3:5],
        scalar=torch.tensor(1.5),
        empty=torch.zeros(0, 3),
        half=torch.randn(5, 4).half(),
        brain=torch.randn(3).bfloat16(),
        double=torch.randn(3).double(),
        mask=torch.ones(1, 1, 3, 3, dtype=torch.bool).tril(),
        ids=torch.arange(5).expand(1, -1),
    )
    state["tied"] = state["plain"]
    state._metadata = collections.OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]  # as modules add it
    return state


def open_folder(folder: Path) -> Any:
    return open_weights(resolve_checkpoint(folder), folder)


@LAYOUTS
def test_a_state_dict_is_read_as_pytorch_reads_it(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(state_dict(), path, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)
    found = open_folder(tmp_path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].shape, found[name].dtype) == (tuple(tensor.shape), tensor.dtype)
        for dtype in (tensor.dtype, torch.float64):
            target = torch.empty(tensor.shape, dtype=dtype)
            found[name].read_into(target)
            assert torch.equal(target, tensor.to(dtype)), name


def test_float8_is_read_from_a_pickle(tmp_path: Path) -> None:
    numbers = torch.tensor([1.0, 2.0, -4.0]).to(torch.float8_e4m3fn)
    torch.save({"x": numbers}, tmp_path / "pytorch_model.bin")
    target = torch.empty(3)
    open_folder(tmp_path)["x"].read_into(target)
    assert torch.equal(target, numbers.float())


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


@LAYOUTS
@pytest.mark.parametrize(
    ("value", "culprit"),
    [
        (lambda: Call(bytearray, 10**11), "bytearray"),
        (lambda: Call(torch.empty, 10**11), "getattr"),
        (lambda: Call(os.system, "true"), "system"),
        (lambda: Call(collections.OrderedDict, [(1, 2)]), "OrderedDict"),
        (lambda: torch.ones(2, 2).to_sparse(), "sparse"),
        (lambda: torch.empty(2, device="meta"), "meta"),
        (lambda: torch.ones(2).numpy(), "numpy"),
        (lambda: torch.zeros(1).expand(10**6), "1000000"),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conj"),
        (lambda: 1.5, "1.5"),
        (lambda: [torch.ones(2)], "list|\\["),
        (lambda: {1, 2}, "SET|set"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_plain_tensor_is_refused_by_name(
    value: Callable[[], Any], culprit: str, zipped: bool, tmp_path: Path
) -> None:
    state = {"plain": torch.ones(2), "odd": value()}
    try:
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    except (RuntimeError, AttributeError, NotImplementedError):
        pytest.skip("PyTorch does not write it in this layout")
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin .*({culprit})"):
        open_folder(tmp_path)


@pytest.mark.parametrize("key", [1, None, ("a", "b")], ids=repr)
def test_a_name_that_is_no_string_is_refused(key: Any, tmp_path: Path) -> None:
    torch.save({"plain": torch.ones(2), key: torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin.*{re.escape(repr(key))}"):
        open_folder(tmp_path)


def with_program(path: Path, edit: Callable[[bytes], bytes]) -> None:
    """Change the instructions of a zipped pickle."""
    source, target = zipfile.ZipFile(path), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            archive.writestr(name, edit(content) if name.endswith("data.pkl") else content)
    path.write_bytes(target.getvalue())


@pytest.mark.parametrize(
    "bomb",
    [
        b"r\xff\xff\xff\xff",  # a memo of four billion places
        b"\x8e" + struct.pack("<Q", 2**40),  # a terabyte of bytes
        b"\x8d" + struct.pack("<Q", 2**40),
        b"\x96" + struct.pack("<Q", 2**40),
        b"\x95" + struct.pack("<Q", 2**40),
        b"\x8f" * 10**5,  # sets
        b"I" + b"1" * 5000 + b"\n",
        b"0" * 5,
    ],
    ids=["memo", "bytes", "text", "bytearray", "frame", "sets", "digits", "pop"],
)
def test_instructions_that_ask_for_memory_are_refused_unfollowed(bomb: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"plain": torch.ones(2)}, path)
    with_program(path, lambda program: program[:2] + bomb + program[2:])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            read_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def test_tensors_lie_within_their_storage(tmp_path: Path) -> None:
    """A size, a stride or an offset may be any number; what reaches behind the storage is refused."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"plain": torch.ones(4, 2)}, path)
    program = zipfile.ZipFile(path).read("pytorch_model/data.pkl")
    whole = path.read_bytes()
    numbers = [at for opcode, _, at in pickletools.genops(program) if opcode.name == "BININT1"]
    refused = 0
    for at in numbers:
        path.write_bytes(whole)
        with_program(path, lambda program, at=at: program[:at] + b"J\xff\xff\xff\x7f" + program[at + 2 :])
        try:
            shape = read_pickle(path)["plain"].shape
        except CheckpointError:
            refused += 1
        else:
            assert shape == (4, 2)  # the storage may claim to be larger than it is
    assert refused >= 5  # the offset, both sizes, both strides


def test_a_file_that_names_the_same_numbers_again_and_again_is_refused(tmp_path: Path) -> None:
    numbers = torch.randn(1000)
    torch.save({f"x.{i}": numbers for i in range(100)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"400000 bytes"):
        open_folder(tmp_path)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"plain": torch.zeros(100_000)}, path)
    source, target = zipfile.ZipFile(path), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    path.write_bytes(target.getvalue())
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*compressed"):
        open_folder(tmp_path)


def test_nothing_is_imported_for_a_name_in_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"plain": torch.ones(2)}, path)
    with_program(path, lambda program: program[:2] + b"cthis\ns\n0" + program[2:])
    with pytest.raises(CheckpointError, match=r"this\.s"):
        read_pickle(path)
    assert "this" not in sys.modules
