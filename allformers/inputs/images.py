"""Images as tensors, preprocessed as a ViT reads them, and the names of its labels."""

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from allformers.checkpoints.hub import read_json, resolve_checkpoint
from allformers.nn.shapes import checked


@checked
def read_image(
    path: str | Path, config: Any, checkpoint: str | Path
) -> Float[Tensor, "batch channels image_height image_width"]:
    """Read an image in a model's size and range: squeezed into a square, each channel brought to about -1 to 1.

    Args:
        path: a PNG, a JPEG, or whatever else Pillow reads.
        config: of a ViT: how large, and how many channels.
        checkpoint: its folder or its name on the hub, whose `preprocessor_config.json` says how to make it small and
            what each channel's mean and standard deviation are; bilinear, 0.5 and 0.5 if it does not.

    Raises:
        ValueError: there is no such picture.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    preprocessor = _preprocessor_config(checkpoint)
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
    side = config.image_size
    small = picture.resize((side, side), Image.Resampling(preprocessor.get("resample", Image.Resampling.BILINEAR)))
    pixels = torch.tensor(np.atleast_3d(np.asarray(small, dtype=np.float32))) * preprocessor.get(
        "rescale_factor", 1 / 255
    )
    default = [0.5] * config.num_channels
    mean, std = (torch.tensor(preprocessor.get(name, default)) for name in ("image_mean", "image_std"))
    normalised = (pixels - mean) / std
    return rearrange(normalised, "image_height image_width channels -> 1 channels image_height image_width")


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


def _preprocessor_config(checkpoint: str | Path) -> dict[str, Any]:
    """The settings by which a checkpoint's images are prepared; empty if it has no such file."""
    path = resolve_checkpoint(checkpoint)("preprocessor_config.json")
    return {} if path is None else read_json(path)
