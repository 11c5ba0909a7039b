"""Pictures become the numbers that the reference's own preparation makes of them, in a model's size."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from allformers.inputs.images import example_image, label_names, read_image
from allformers.models.vit.vit import ViT, ViTConfig


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Noise, not square."""
    pixels = torch.randint(256, (30, 47, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize(
    "settings",
    [{}, {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}],
    ids=["as most", "ImageNet's"],
)
def test_a_picture_is_prepared_as_the_reference_does(
    settings: dict[str, object], picture: Path, tmp_path: Path
) -> None:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, **settings)
    processor.save_pretrained(tmp_path)
    theirs = processor(Image.open(picture), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(read_image(picture, ViTConfig.tiny(), tmp_path), theirs, atol=1e-6, rtol=1e-6)


def test_a_grey_model_reads_grey(picture: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(ViTConfig.tiny(), num_channels=1)
    assert read_image(picture, config, tmp_path).shape == (1, 1, 32, 32)
    with pytest.raises(ValueError, match=r"\b1\b.*\b3\b.*\b4\b"):
        read_image(picture, dataclasses.replace(config, num_channels=4), tmp_path)


def test_the_example_is_brighter_on_its_disc() -> None:
    image = example_image(ViTConfig.tiny())[0, 0]
    assert image[16, 11] == image.max()
    assert image[0, 0] == image.min()


def test_labels_have_the_first_of_their_names_or_numbers(tmp_path: Path) -> None:
    assert label_names(tmp_path, 2) == ["0", "1"]
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "tench, Tinca tinca"}}))
    assert label_names(tmp_path, 2) == ["tench", "1"]
    ViT(ViTConfig.tiny()).save_pretrained(tmp_path)
    assert label_names(tmp_path, 1) == ["LABEL_0"]
