"""Images as numbers, as a ViT reads them, and the names of what it may see in them."""

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
    """A picture in a model's size and range: squeezed into a square, each channel brought to about -1 to 1.

    Args:
        path: a PNG, a JPEG, or whatever else Pillow reads.
        config: of a ViT: how large, and how many channels.
        checkpoint: its folder or its name on the hub, whose `preprocessor_config.json` says how to make it small and
            what each channel's mean and spread are; bilinear, 0.5 and 0.5 if it does not.

    Raises:
        ValueError: there is no such picture.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    settings = _settings(checkpoint)
    kinds = {1: "L", 3: "RGB"}
    if config.num_channels not in kinds:
        raise ValueError(f"a picture has 1 channel or 3, and this model reads {config.num_channels}")
    try:
        with Image.open(path) as opened:
            picture = opened.convert(kinds[config.num_channels])
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that Pillow can read: give a PNG or a JPEG") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    side = config.image_size
    small = picture.resize((side, side), Image.Resampling(settings.get("resample", Image.Resampling.BILINEAR)))
    pixels = torch.tensor(np.atleast_3d(np.asarray(small, dtype=np.float32))) * settings.get("rescale_factor", 1 / 255)
    middle = [0.5] * config.num_channels
    mean, spread = (torch.tensor(settings.get(name, middle)) for name in ("image_mean", "image_std"))
    scaled = (pixels - mean) / spread
    return rearrange(scaled, "image_height image_width channels -> 1 channels image_height image_width")


@checked
def example_image(config: Any) -> Float[Tensor, "batch channels image_height image_width"]:
    """A picture made for looking at a model without one: a bright disc, left of the middle, on a slope of grey."""
    places = torch.linspace(-1, 1, config.image_size)
    down, across = (
        rearrange(places, "image_height -> image_height 1"),
        rearrange(places, "image_width -> 1 image_width"),
    )
    seen = torch.where(down**2 + (across + 0.3) ** 2 < 0.2, 0.9, 0.4 * (down + across))
    channels = [seen * (1 - 0.4 * channel) for channel in range(config.num_channels)]
    return rearrange(channels, "channels image_height image_width -> 1 channels image_height image_width")


def label_names(checkpoint: str | Path, count: int) -> list[str]:
    """What a checkpoint calls its labels, in order, each by the first of its names; numbers where it has none."""
    path = resolve_checkpoint(checkpoint)("config.json")
    named = {} if path is None else read_json(path).get("id2label") or {}
    return [str(named.get(str(label), label)).partition(",")[0] for label in range(count)]


def _settings(checkpoint: str | Path) -> dict[str, Any]:
    """How the pictures were prepared that a checkpoint learned from."""
    path = resolve_checkpoint(checkpoint)("preprocessor_config.json")
    return {} if path is None else read_json(path)
