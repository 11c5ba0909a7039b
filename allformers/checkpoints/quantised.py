"""Weights that are stored in fewer bits: block-scaled float8 is undone as it is read, all else is refused by name.

DeepSeek-V3 is published in float8: a weight of 8 bits has few values, so that each block of 128 x 128 weights has a
factor (a scale) of its own, in another tensor:

    model.layers.0.mlp.up_proj.weight              18432 x 7168, float8
    model.layers.0.mlp.up_proj.weight_scale_inv      144 x 56, float32

Source: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", arXiv:2412.19437, section 3.3.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.tensors import LazyTensor
from allformers.messages import shown

SCALE = "_scale_inv"
"""What the name of a weight's scales has behind that of the weight."""

UNUSED = (".activation_scale", ".input_scale")
"""Endings of the names of scales of activations, which nothing needs where weights are no longer quantised."""


def dequantised(
    tensors: Mapping[str, LazyTensor], config_dict: Mapping[str, Any], where: str
) -> Mapping[str, LazyTensor]:
    """The tensors of a checkpoint, those in block-scaled float8 as the numbers that they stand for, in bfloat16.

    Args:
        tensors: all that the checkpoint has.
        config_dict: its `config.json`, whose `quantization_config` names the method and the size of the blocks.
        where: the checkpoint, as errors name it.

    Raises:
        CheckpointError: the method is another one, or weights and scales do not fit each other.
    """
    settings = config_dict.get("quantization_config")
    if settings is None:
        scales = next((name for name in tensors if name.endswith(SCALE)), None)
        if scales is not None:
            raise CheckpointError(
                f"{where} has scales of float8 weights, such as {scales}, but config.json has no quantization_config, "
                "which says how large their blocks are: take it from the published config.json"
            )
        return tensors
    method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
    if method != "fp8":
        raise CheckpointError(
            f"{where}: quantization_config says that the weights are quantised by {shown(method)}, which cannot be "
            "read here, where only 'fp8' can: take a checkpoint that is not quantised"
        )
    block = settings.get("weight_block_size", (128, 128))
    if block is not None and not (
        isinstance(block, list | tuple) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    ):
        raise CheckpointError(f"{where}: weight_block_size is {shown(block)}; expected two positive numbers, or null")
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if (name.endswith(SCALE) and name.removesuffix(SCALE) in tensors) or name.endswith(UNUSED):
            continue
        scale = tensors.get(name + SCALE)
        if scale is not None:
            tensor = _dequantised(tensor, scale, block, f"{where}: {name}")
        elif tensor.dtype.itemsize == 1 and tensor.dtype.is_floating_point:
            raise CheckpointError(f"{where}: {name} is {tensor.dtype}, and {name + SCALE} is missing")
        found[name] = tensor
    return found


def _dequantised(weight: LazyTensor, scale: LazyTensor, block: Any, where: str) -> LazyTensor:
    """A weight that is multiplied by its scales when it is read."""
    if len(weight.shape) != 2 or not weight.dtype.is_floating_point or not scale.dtype.is_floating_point:
        raise CheckpointError(
            f"{where}: weight and scales are {weight.dtype} {weight.shape} and {scale.dtype} {scale.shape}; expected "
            "a matrix of float8 and numbers"
        )
    rows, columns = weight.shape
    block_rows, block_columns = block or weight.shape
    expected = (-(-rows // block_rows), -(-columns // block_columns))
    if scale.shape != expected and not (expected == (1, 1) and scale.shape in ((), (1,))):
        raise CheckpointError(
            f"{where}: its scales are {scale.shape}, expected {expected}: blocks of {block_rows} x {block_columns}"
        )
    read = functools.partial(_read_scaled, weight, scale, (block_rows, block_columns))
    return LazyTensor(weight.shape, torch.bfloat16, read)


def _read_scaled(weight: LazyTensor, scale: LazyTensor, block: tuple[int, int], target: Tensor) -> None:
    """Read a weight and its scales, and write their product, computed in float32, into `target`."""
    values, scales = (torch.empty(one.shape, dtype=one.dtype) for one in (weight, scale))
    weight.read_into(values)
    scale.read_into(scales)
    rows, columns = (torch.arange(size) // length for size, length in zip(weight.shape, block, strict=True))
    target.copy_(values.float() * torch.atleast_2d(scales.float())[rows][:, columns])
