"""Images as tensors, preprocessed as a ViT reads them, and the names of its labels."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.hub import read_json, resolve_checkpoint
from allformers.messages import shown
from allformers.nn.shapes import checked

PREPROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"size": 224, "resample": 2, "do_center_crop": False},
    "DeiT": {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
}
"""What a `preprocessor_config.json` means where it does not say it, by the beginning of its `image_processor_type`."""


@checked
def read_image(
    path: str | Path, config: Any, checkpoint: str | Path
) -> Float[Tensor, "batch channels image_height image_width"]:
    """Read an image and prepare it as a model's images were: resized, cropped, rescaled and normalised.

    Args:
        path: a PNG, a JPEG, or whatever else Pillow reads.
        config: of a ViT: how many channels, and how large, unless the checkpoint says it.
        checkpoint: its folder or its name on the hub, whose `preprocessor_config.json` says which of the steps there
            are, and with which numbers. Without that file, images are squeezed into the model's size, and each channel
            is brought to -1 to 1.

    Raises:
        ValueError: there is no such picture.
        CheckpointError: the checkpoint's images are prepared in a way that is not known here.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    settings = _preprocessor_config(checkpoint, config.image_size)
    modes = {1: "L", 3: "RGB"}
    if config.num_channels not in modes:
        raise ValueError(f"a picture has 1 channel or 3, and this model reads {config.num_channels}")
    try:
        with Image.open(path) as opened:
            picture = opened.convert(modes[config.num_channels])
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that Pillow can read: give a PNG or a JPEG") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    if settings["do_resize"]:
        height, width = _resized(settings["size"], picture.height, picture.width)
        picture = picture.resize((width, height), Image.Resampling(settings["resample"]))
    if settings["do_center_crop"]:
        height, width = _height_and_width(settings["crop_size"])
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))  # what lies outside of the picture is black
    pixels = torch.tensor(np.atleast_3d(np.asarray(picture, dtype=np.float32)))
    if settings["do_rescale"]:
        pixels = pixels * settings["rescale_factor"]
    if settings["do_normalize"]:
        mean, std = (torch.tensor(settings[name], dtype=torch.float32) for name in ("image_mean", "image_std"))
        for name, numbers in (("image_mean", mean), ("image_std", std)):
            if numbers.ndim and len(numbers) not in (1, config.num_channels):
                raise CheckpointError(
                    f"{name} has {len(numbers)} numbers, and this model's images have {config.num_channels} channels"
                )
        pixels = (pixels - mean) / std
    return rearrange(pixels, "image_height image_width channels -> 1 channels image_height image_width")


@checked
def example_image(config: Any) -> Float[Tensor, "batch channels image_height image_width"]:
    """An image made for looking at a model without one: a bright disc, left of the middle, on a slope of grey."""
    coordinates = torch.linspace(-1, 1, config.image_size)
    y, x = (
        rearrange(coordinates, "image_height -> image_height 1"),
        rearrange(coordinates, "image_width -> 1 image_width"),
    )
    grey = torch.where(y**2 + (x + 0.3) ** 2 < 0.2, 0.9, 0.4 * (y + x))
    channels = [grey * (1 - 0.4 * channel) for channel in range(config.num_channels)]
    return rearrange(channels, "channels image_height image_width -> 1 channels image_height image_width")


def label_names(checkpoint: str | Path, count: int) -> list[str]:
    """A checkpoint's names for its labels, in order, each by the first of its names; numbers where it has none."""
    path = resolve_checkpoint(checkpoint)("config.json")
    named = {} if path is None else read_json(path).get("id2label") or {}
    return [str(named.get(str(label), label)).partition(",")[0] for label in range(count)]


def _preprocessor_config(checkpoint: str | Path, image_size: int) -> dict[str, Any]:
    """The settings by which a checkpoint's images are prepared; the usual ones if it has no such file.

    Raises:
        CheckpointError: they are those of another processor, or ask for a step that is not known here.
    """
    path = resolve_checkpoint(checkpoint)("preprocessor_config.json")
    given = {"size": image_size} if path is None else read_json(path)
    processor = given.get("image_processor_type") or given.get("feature_extractor_type") or "ViTImageProcessor"
    kind = re.fullmatch(r"(ViT|DeiT)(?:FeatureExtractor|ImageProcessor(?:Fast|Pil)?)", str(processor))
    if kind is None:
        raise CheckpointError(
            f"{path} is of a {shown(processor)}; known here are ViTImageProcessor and DeiTImageProcessor"
        )
    if given.get("do_pad"):
        raise CheckpointError(f"{path}: do_pad is {shown(given['do_pad'])}, and images are not padded here")
    usual = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    usual |= {"image_mean": 0.5, "image_std": 0.5, **PREPROCESSORS[kind[1]]}
    settings = usual | {name: value for name, value in given.items() if value is not None}
    for name in ("size", *(["crop_size"] if settings["do_center_crop"] else [])):
        if not _is_size(settings.get(name), edges=name == "size"):
            raise CheckpointError(
                f"{path}: {name} is {shown(settings.get(name))}; expected a number of pixels, or a height and a width"
            )
    resample, numbers = settings["resample"], [settings["rescale_factor"]]
    for name in ("image_mean", "image_std"):
        numbers += settings[name] if isinstance(settings[name], list) else [settings[name]]
    if not all(map(_is_number, numbers)) or type(resample) is not int or not 0 <= resample <= 5:
        named = ("resample", "rescale_factor", "image_mean", "image_std")
        said = ", ".join(f"{name} {shown(settings[name])}" for name in named)
        raise CheckpointError(f"{path} should have numbers, and a resample from 0 to 5, but says {said}")
    return settings


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(size: Any, *, edges: bool) -> bool:
    """True for pixels, a pair of them, a height and a width, or, where `edges` are allowed, the shortest edge."""
    if isinstance(size, dict):
        known = ({"height", "width"}, {"shortest_edge"}) if edges else ({"height", "width"},)
        pixels = list(size.values()) if set(size) in known else []
    else:
        pixels = size if isinstance(size, list) and len(size) == 2 else [size]
    return bool(pixels) and all(type(one) is int and one > 0 for one in pixels)


def _height_and_width(size: Any) -> tuple[int, int]:
    """A size as `preprocessor_config.json` says it, in pixels."""
    if isinstance(size, dict):
        return size["height"], size["width"]
    return (size[0], size[1]) if isinstance(size, list) else (size, size)


def _resized(size: Any, height: int, width: int) -> tuple[int, int]:
    """The height and width of an image that is resized; by its shortest edge, it keeps its proportions."""
    if not isinstance(size, dict) or "shortest_edge" not in size:
        return _height_and_width(size)
    edge, shortest = size["shortest_edge"], min(height, width)
    return int(edge * height / shortest), int(edge * width / shortest)
