"""Pictures become the numbers that the reference's own preparation makes of them, in a model's size."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from allformers.checkpoints import CheckpointError
from allformers.inputs.images import example_image, label_names, read_image
from allformers.models.vit.vit import ViT, ViTConfig
from conftest import names


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Noise, not square."""
    pixels = torch.randint(256, (30, 47, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


SETTINGS: dict[str, dict[str, object]] = {
    "as most": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    "ImageNet's": {"size": 32, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3},
    "DeiT's": {"feature_extractor_type": "DeiTFeatureExtractor", "size": 40, "crop_size": 32},
    "DeiT's own sizes": {"feature_extractor_type": "DeiTFeatureExtractor"},
    "ViT's own size": {"feature_extractor_type": "ViTFeatureExtractor"},
    "an odd crop": {"size": 41, "do_center_crop": True, "crop_size": {"height": 32, "width": 25}},
    "a crop wider than the image": {"size": 30, "do_center_crop": True, "crop_size": 37},
    "a crop alone": {"do_resize": False, "do_center_crop": True, "crop_size": 24},
    "by the shortest edge": {"size": {"shortest_edge": 33}, "do_center_crop": True, "crop_size": 32},
    "not square": {"size": {"height": 24, "width": 40}, "resample": 0},
    "not normalised": {"size": 32, "do_normalize": False},
    "not rescaled": {"size": 32, "do_rescale": False, "image_mean": [100.0, 120.0, 140.0]},
    "neither": {"size": 32, "do_rescale": False, "do_normalize": False},
    "rescaled otherwise": {"size": 32, "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 2.0},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_picture_is_prepared_as_the_reference_does(
    settings: dict[str, object], picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    theirs = processor(Image.open(picture), return_tensors="pt")["pixel_values"].float()
    ours = read_image(picture, ViTConfig.tiny(), tmp_path)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
    ("settings", "culprits"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, ["CLIPImageProcessor"]),
        ({"do_pad": True}, ["do_pad"]),
        ({"size": {"longest_edge": 32}}, ["size", "longest_edge"]),
        ({"size": -1}, ["size"]),
        ({"size": 32, "do_center_crop": True}, ["crop_size", "None"]),
        ({"resample": 9}, ["resample", "9"]),
        ({"rescale_factor": "half"}, ["rescale_factor", "'half'"]),
        ({"image_std": [0.5, None, 0.5]}, ["image_std", "None"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else next(iter(value)),
)
def test_a_preparation_that_is_not_known_is_refused(
    settings: dict[str, object], culprits: list[str], picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=names("preprocessor_config.json", *culprits)):
        read_image(picture, ViTConfig.tiny(), tmp_path)


def test_numbers_for_other_channels_are_refused(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5]}')
    with pytest.raises(CheckpointError, match=names("image_mean", 2, 3)):
        read_image(picture, ViTConfig.tiny(), tmp_path)


def test_without_settings_a_picture_has_the_models_size(picture: Path, tmp_path: Path) -> None:
    image = read_image(picture, ViTConfig.tiny(), tmp_path)
    assert image.shape == (1, 3, 32, 32)
    assert -1 <= image.min() < -0.5 < 0.5 < image.max() <= 1


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
