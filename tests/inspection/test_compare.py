"""Comparisons: two runs part where their texts do, and two models where their weights do."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from allformers.checkpoints.config_json import write_config
from allformers.checkpoints.loading import checkpoint_tensors
from allformers.inspection.compare import compare_models, compare_texts, entropy, jensen_shannon, run
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from conftest import perturb

TEXT = torch.randint(256, (12,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    model = GPT2(dataclasses.replace(GPT2Config.tiny(), num_layers=3)).eval()
    perturb(model)
    return model


def changed(text: Tensor, position: int) -> Tensor:
    return torch.cat([text[:position], (text[position : position + 1] + 1) % 256, text[position + 1 :]])


@pytest.mark.parametrize("position", [0, 5, 11])
def test_runs_part_where_the_texts_do_and_not_before(model: GPT2, position: int) -> None:
    _, (found,) = compare_texts(model, [TEXT, changed(TEXT, position)])
    assert found.divergence_position == position
    assert found.divergence[:position] == [0.0] * position
    assert all(bits > 1e-4 for bits in found.divergence[position:])
    assert len(found.similarity) == 4
    assert found.similarity[0] < 1


def test_the_same_text_is_the_same_run(model: GPT2) -> None:
    _, (found, longer) = compare_texts(model, [TEXT, TEXT.clone(), torch.cat([TEXT, TEXT])])
    assert found.divergence_position is longer.divergence_position is None
    assert found.divergence == [0.0] * 12
    assert max(longer.divergence) < 1e-6
    assert found.similarity == pytest.approx([1.0] * 4)


def test_the_cosine_is_that_of_the_vectors_after_the_texts_part(model: GPT2) -> None:
    runs, (found,) = compare_texts(model, [TEXT, changed(TEXT, 7)])
    one, other = (result.stream[2][7:].double() for result in runs)
    cosines = (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))
    assert found.similarity[2] == pytest.approx(cosines.mean().item())


def test_texts_that_cannot_be_compared_are_refused(model: GPT2) -> None:
    with pytest.raises(ValueError, match=r"\b1\b"):
        compare_texts(model, [TEXT])
    with pytest.raises(ValueError, match="empty"):
        compare_texts(model, [TEXT, TEXT[:0]])


def reference_of(model: GPT2) -> Any:
    transformers = pytest.importorskip("transformers")
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**write_config(GPT2.checkpoint_format(), model.config))
    ).eval()
    reference.load_state_dict(checkpoint_tensors(model), strict=False)
    return reference


def test_a_model_and_its_reference_do_not_differ(model: GPT2) -> None:
    found = compare_models(model, reference_of(model), TEXT)
    assert found.names == ("embed", "blocks.0", "blocks.1", "final_norm", "logits")
    assert found.first_difference is None
    assert max(found.differences) < 1e-5
    assert max(found.divergence) < 1e-6


@pytest.mark.parametrize(
    ("weight", "name"),
    [
        ("position_embedding.weight", "embed"),
        ("blocks.0.mlp.up.bias", "blocks.0"),
        ("blocks.1.attention.output.weight", "blocks.1"),
        ("blocks.2.mlp_norm.weight", "final_norm"),
        ("final_norm.bias", "final_norm"),
    ],
)
def test_the_first_activation_in_which_models_differ_is_named(model: GPT2, weight: str, name: str) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(weight).add_(0.01)
    assert compare_models(model, other, TEXT).first_difference == name
    assert compare_models(other, reference_of(model), TEXT).first_difference == name
    assert compare_models(model, other, TEXT, tolerance=10.0).first_difference is None


def test_models_of_different_sizes_are_refused(model: GPT2) -> None:
    with pytest.raises(ValueError, match=r"\b3\b.*\b64\b.*\b256\b.*\b2\b.*\b64\b.*\b256\b"):
        compare_models(model, GPT2(GPT2Config.tiny()), TEXT)


def test_a_run_keeps_the_stream_and_the_logits(model: GPT2) -> None:
    result = run(model, TEXT)
    assert [tuple(x.shape) for x in result.stream] == [(12, 64)] * 4
    assert torch.equal(result.logits, model(TEXT[None])[0].detach())


def test_the_divergence_is_lins() -> None:
    p, q = torch.tensor([0.5, 0.5, 1e-30]), torch.tensor([1e-30, 0.5, 0.5])
    assert jensen_shannon(p.log(), q.log()).item() == pytest.approx(0.5)
    assert jensen_shannon(p.log(), p.log()).item() == 0
    far = torch.tensor([0.0, 1000.0])
    assert jensen_shannon(far, far.flip(0)).item() == pytest.approx(1)
    batch = torch.randn(4, 3, 7), torch.randn(4, 3, 7)
    assert torch.allclose(jensen_shannon(*batch), jensen_shannon(*reversed(batch)))


def test_entropy_is_in_bits() -> None:
    rows = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])
    assert entropy(rows).tolist() == pytest.approx([0, 2, 1])
    assert math.isfinite(entropy(torch.zeros(3)).item())
