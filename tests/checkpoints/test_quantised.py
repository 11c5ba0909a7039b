"""Block-scaled float8 becomes what the reference makes of it; other quantised weights are refused by their method."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import allformers
from allformers.checkpoints import CheckpointError
from allformers.models.deepseek_v3.deepseek_v3 import DeepSeekV3, DeepSeekV3Config
from conftest import names, perturb

PUBLISHED = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}


def quantise(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A matrix in float8, and a scale for each of its blocks, the last ones cut."""
    rows, columns = (-(-size // part) for size, part in zip(weight.shape, block, strict=True))
    scales = torch.rand(rows, columns) + 0.5
    return weight.to(torch.float8_e4m3fn), scales


def dequantise(weight: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """By the definition: the number at a place, times the scale of the block that it lies in."""
    rows, columns = (torch.arange(size) // part for size, part in zip(weight.shape, block, strict=True))
    return weight.float() * scales[rows][:, columns]


def write(folder: Path, settings: Any, block: tuple[int, int] | None) -> tuple[DeepSeekV3, dict[str, Tensor]]:
    """A small DeepSeek-V3 whose projections are in float8, if there are blocks; and what they stand for."""
    model = perturb(DeepSeekV3(DeepSeekV3Config.tiny(num_layers=2))).bfloat16()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    weights, expected = load_file(folder / "model.safetensors"), {}
    for name, weight in list(weights.items()):
        if block is not None and "_proj" in name and weight.ndim == 2:
            weights[name], weights[f"{name}_scale_inv"] = quantise(weight.float(), block)
            expected[name] = dequantise(weights[name], weights[f"{name}_scale_inv"], block)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return model, expected


@pytest.mark.parametrize("block", [(16, 8), (16, 10), (128, 128)], ids=str)  # the second has blocks that are cut
def test_block_scaled_float8_is_undone(block: tuple[int, int], tmp_path: Path) -> None:
    model, expected = write(tmp_path, PUBLISHED | {"weight_block_size": list(block)}, block)
    for dtype in (None, torch.float32, torch.bfloat16):
        loaded = allformers.load(tmp_path, dtype=dtype)
        assert {one.dtype for one in loaded.parameters()} == {dtype or torch.bfloat16}
        attention, experts = loaded.blocks[0].attention, loaded.blocks[1].mlp
        for ours, theirs in (
            (attention.output.weight, "layers.0.self_attn.o_proj.weight"),
            (attention.kv_down.weight, "layers.0.self_attn.kv_a_proj_with_mqa.weight"),
            (experts.down[3], "layers.1.mlp.experts.3.down_proj.weight"),
        ):
            assert torch.equal(ours, expected[f"model.{theirs}"].to(ours.dtype))
        assert torch.equal(
            loaded.blocks[0].mlp_norm.weight, model.blocks[0].mlp_norm.weight.to(dtype or torch.bfloat16)
        )
    loaded.save_pretrained(tmp_path / "again")
    again = allformers.load(tmp_path / "again")
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), loaded.parameters(), strict=True))


@pytest.mark.slow  # to import its kernels
def test_it_is_what_the_reference_makes_of_it() -> None:
    """The reference refuses blocks that are cut, as DeepSeek's own are."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    from allformers.checkpoints.quantised import dequantised
    from allformers.checkpoints.tensors import in_memory

    weight, scales = quantise(torch.randn(48, 40), (16, 8))
    tensors = {"a.weight": in_memory(weight), "a.weight_scale_inv": in_memory(scales)}
    settings = {"quantization_config": PUBLISHED | {"weight_block_size": [16, 8]}}
    (ours,) = dequantised(tensors, settings, "here").values()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        read = torch.empty(48, 40, dtype=dtype)
        ours.read_into(read)
        assert torch.equal(read, Fp8Dequantize(None)._dequantize_one(weight, scales, dtype))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_one_scale_may_be_for_the_whole_matrix(shape: tuple[int, ...], tmp_path: Path) -> None:
    write(tmp_path, PUBLISHED | {"weight_block_size": None}, (1000, 1000))
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight"
    expected = weights[name].float() * weights[f"{name}_scale_inv"]
    for scale in [one for one in weights if one.endswith("_scale_inv")]:
        weights[scale] = weights[scale].reshape(shape)
    weights["model.layers.0.self_attn.o_proj.activation_scale"] = torch.ones(())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = allformers.load(tmp_path, dtype=torch.float32)
    assert torch.equal(loaded.blocks[0].attention.output.weight, expected)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "mxfp4", None])
def test_other_methods_are_refused_by_name(method: str | None, tmp_path: Path) -> None:
    """Whatever the weights are: the configuration says that they are not what they seem."""
    write(tmp_path, {"quant_method": method, "bits": 4}, None)
    with pytest.raises(CheckpointError, match=names(tmp_path, "quantization_config", repr(method))):
        allformers.load(tmp_path)


def test_without_quantisation_nothing_is_said(tmp_path: Path) -> None:
    write(tmp_path, None, None)
    allformers.load(tmp_path)


def test_scales_without_the_size_of_their_blocks_are_refused(tmp_path: Path) -> None:
    write(tmp_path, None, (16, 8))
    with pytest.raises(CheckpointError, match=names("quantization_config", "scales")) as refused:
        allformers.load(tmp_path)
    assert "_scale_inv" in str(refused.value)
    assert "\n" not in str(refused.value)


NAME = "model.layers.0.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("settings", "change", "culprits"),
    [
        ({}, {f"{NAME}_scale_inv": None}, [NAME, f"{NAME}_scale_inv", "missing"]),
        ({}, {f"{NAME}_scale_inv": torch.ones(3, 5)}, [NAME, "(3, 5)", "(4, 8)"]),
        ({}, {f"{NAME}_scale_inv": torch.ones(4, 6, dtype=torch.uint8)}, [NAME, "torch.uint8"]),
        ({}, {NAME: torch.ones(64, 24, dtype=torch.int8)}, [NAME, "torch.int8"]),
        ({"weight_block_size": [16]}, {}, ["weight_block_size", "[16]"]),
        ({"weight_block_size": [0, 8]}, {}, ["weight_block_size", "[0, 8]"]),
    ],
    ids=["no scales", "too few scales", "scales of bytes", "weights of bytes", "one number", "no block"],
)
def test_scales_that_do_not_fit_are_refused_by_name(
    settings: dict[str, Any], change: dict[str, Tensor | None], culprits: list[str], tmp_path: Path
) -> None:
    write(tmp_path, PUBLISHED | {"weight_block_size": [16, 8]} | settings, (16, 8))
    weights = load_file(tmp_path / "model.safetensors") | change
    save_file({n: w for n, w in weights.items() if w is not None}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="(?s)" + "".join(f"(?=.*{re.escape(one)})" for one in culprits)):
        allformers.load(tmp_path)
