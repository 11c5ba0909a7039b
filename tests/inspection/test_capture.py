"""Capture: what is seen is what was computed, what is edited takes effect, and what is not looked into is untouched."""

import dataclasses
import dis
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from allformers.checkpoints.config_json import write_config
from allformers.checkpoints.loading import checkpoint_tensors
from allformers.inspection import capture, names, replaced_by, without_heads
from allformers.models.gpt2.gpt2 import GPT2, CausalSelfAttention, GPT2Config
from allformers.models.registry import READING_ORDER
from allformers.nn.shapes import ShapeError
from conftest import perturb

LAYERS = 3


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    model = GPT2(dataclasses.replace(GPT2Config.tiny(), num_layers=LAYERS)).eval()
    perturb(model)
    return model


@pytest.fixture(scope="module")
def token_ids() -> Tensor:
    return torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reference(model: GPT2) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**write_config(GPT2.format, model.config))
    config._attn_implementation = "eager"
    reference = transformers.GPT2LMHeadModel(config).eval()
    reference.load_state_dict(checkpoint_tensors(model), strict=False)
    return reference


def test_attention_weights_are_the_references_in_every_layer_and_head(
    model: GPT2, reference: Any, token_ids: Tensor
) -> None:
    with capture(model, "blocks.*.attention.weights") as seen:
        model(token_ids)
    with torch.no_grad():
        expected = reference(token_ids, output_attentions=True).attentions
    assert len(seen) == len(expected) == LAYERS
    for ours, theirs in zip(seen.by_layer("attention.weights"), expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-5
        assert torch.allclose(ours.sum(-1), torch.ones(2, 4, 13), atol=1e-6)


def test_the_residual_stream_is_the_references(model: GPT2, reference: Any, token_ids: Tensor) -> None:
    with capture(model) as seen:
        model(token_ids)
    with torch.no_grad():
        expected = reference(token_ids, output_hidden_states=True).hidden_states
    ours = [*seen.by_layer("x"), model.final_norm(seen[f"blocks.{LAYERS - 1}"].values)]
    for one, other in zip(ours, expected, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_each_stream_plus_what_a_part_wrote_is_the_next_exactly(model: GPT2, token_ids: Tensor) -> None:
    with capture(model) as seen:
        logits = model(token_ids)
    assert torch.equal(seen["embed"].values, seen["blocks.0.x"].values)
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        between = seen[f"{block}.between"].values
        assert torch.equal(seen[f"{block}.x"].values + seen[f"{block}.attention"].values, between)
        assert torch.equal(between + seen[f"{block}.mlp"].values, seen[block].values)
        if layer:
            assert torch.equal(seen[f"blocks.{layer - 1}"].values, seen[f"{block}.x"].values)
    assert torch.equal(seen["logits"].values, logits)


def test_every_tensor_has_the_axes_that_its_name_says(model: GPT2, token_ids: Tensor) -> None:
    """What is annotated inside functions is checked here: nothing checks it when the model runs."""
    with capture(model) as seen:
        model(token_ids)
    assert set(seen) == set(names(model))
    sizes = {**model.config.axes, "batch": 2, "seq": 13, "seq_k": 13, "1": 1}
    for tensor in seen.values():
        broadcast = tensor.name.endswith(("blocked", "mask"))
        for axis, size in tensor.sizes.items():
            assert size == sizes[axis] or (broadcast and axis == "batch" and size == 1), (tensor.name, axis)
    assert seen["blocks.1.attention.weights"].axes == ("batch", "heads", "seq", "seq_k")


def test_scores_are_what_softmax_is_taken_of(model: GPT2, token_ids: Tensor) -> None:
    with capture(model, "blocks.*.attention.*") as seen:
        model(token_ids)
    attention = {name: seen[f"blocks.2.attention.{name}"].values for name in ("scores", "weights", "values", "mixed")}
    assert torch.equal(attention["scores"].softmax(-1), attention["weights"])
    assert (attention["scores"].triu(1) != 0).any()
    assert torch.allclose(attention["weights"] @ attention["values"], attention["mixed"], atol=1e-6)


def test_with_a_cache_there_are_more_keys_than_queries(model: GPT2, token_ids: Tensor) -> None:
    cache = model.make_cache()
    with capture(model, "blocks.0.attention.*") as seen:
        model(token_ids[:, :9], cache=cache)
        model(token_ids[:, 9:], cache=cache)
    sizes = seen["blocks.0.attention.weights"].sizes
    assert (sizes["seq"], sizes["seq_k"]) == (4, 13)
    assert seen["blocks.0.attention.keys"].sizes["seq_k"] == 13


def test_only_what_was_asked_for_is_kept(model: GPT2, token_ids: Tensor) -> None:
    with capture(model, "blocks.1.attention.weights", "logits") as seen:
        model(token_ids)
    assert list(seen) == ["blocks.1.attention.weights", "logits"]
    with capture(model, "blocks.*") as blocks:
        model(token_ids)
    assert list(blocks) == ["blocks.0", "blocks.1", "blocks.2"]
    with pytest.raises(KeyError, match=r"blocks\.0\.attention\.weights.*blocks\.1"):
        seen["blocks.0.attention.weights"]


def test_results_are_the_same_to_the_bit_and_gradients_still_flow(model: GPT2, token_ids: Tensor) -> None:
    plain = model(token_ids)
    same = dict.fromkeys(names(model), lambda values: values.clone())
    with capture(model, edits=same):
        edited = model(token_ids)
    assert torch.equal(plain, edited)
    (wanted,) = torch.autograd.grad(plain.sum(), model.token_embedding.weight)
    (found,) = torch.autograd.grad(edited.sum(), model.token_embedding.weight)
    assert torch.equal(wanted, found)


def test_a_silenced_head_passes_nothing_on(model: GPT2, token_ids: Tensor) -> None:
    with capture(model, edits={"blocks.1.attention.mixed": without_heads(2, 3)}) as seen:
        silenced = model(token_ids)
    mixed = seen["blocks.1.attention.mixed"].values
    assert torch.equal(mixed[:, 2:], torch.zeros_like(mixed[:, 2:]))
    # The same by taking the heads' columns out of the output projection.
    other = GPT2(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        columns = rearrange(other.blocks[1].attention.output.weight, "e (h d) -> e h d", h=4)
        columns[:, 2:] = 0
    assert torch.allclose(silenced, other(token_ids), atol=1e-5)
    assert not torch.allclose(silenced, model(token_ids), atol=1e-2)


def test_patching_the_whole_stream_makes_one_run_the_other(model: GPT2, token_ids: Tensor) -> None:
    with capture(model, "blocks.1") as seen:
        expected = model(token_ids)
    with capture(model, edits={"blocks.1": replaced_by(seen["blocks.1"].values)}):
        patched = model(torch.zeros_like(token_ids))
    assert torch.equal(patched, expected)


def test_an_edit_of_another_shape_is_refused(model: GPT2, token_ids: Tensor) -> None:
    message = r"blocks\.0\.mlp\.active .*\(2, 13, 1\).*\(2, 13, 256\).*batch seq"
    with capture(model, edits={"blocks.0.mlp.active": lambda x: x[..., :1]}), pytest.raises(ShapeError, match=message):
        model(token_ids)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blocks.9.attention.weights", r"blocks\.9\.attention\.weights.*blocks\.0\.attention"),
        ("nonsense", "nonsense.*active, attention, between"),
    ],
)
def test_a_name_that_is_not_there_is_refused_before_the_model_runs(model: GPT2, pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message), capture(model, pattern):
        pass
    with pytest.raises(ValueError, match=message), capture(model, edits={pattern: torch.zeros_like}):
        pass


def test_afterwards_the_model_is_as_it_was_even_after_an_error(model: GPT2, token_ids: Tensor) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("from the edit")

    with pytest.raises(RuntimeError, match="from the edit"), capture(model, edits={"logits": fail}):
        model(token_ids)
    for module in model.modules():
        assert not {"forward", "embed", "unembed", "mask", "read"} & set(vars(module))
    with capture(model) as outer:
        with capture(model, "logits") as inner:
            model(token_ids)
        assert (len(outer), len(inner)) == (0, 1)  # the inner one has taken the model's methods over
        model(token_ids)
    assert len(outer) == len(names(model))


def test_another_model_of_the_same_class_is_not_touched(model: GPT2, token_ids: Tensor) -> None:
    other = GPT2(model.config).eval()
    with capture(model) as seen:
        other(token_ids)
    assert len(seen) == 0


def test_generation_is_captured_too(model: GPT2, token_ids: Tensor) -> None:
    with capture(model, "logits") as seen:
        written = model.generate(token_ids, max_new_tokens=3, temperature=0)
    assert torch.equal(seen["logits"].values[:, -1].argmax(-1), written[:, -1])


def test_nothing_of_this_is_in_the_code_that_runs() -> None:
    """An annotation of a variable leaves no instruction behind, so a model costs the same with and without."""
    annotated = (
        "def f(x):\n    y: Float[Tensor, 'batch seq'] = g(x)\n    z: Float[Tensor, 'batch']\n    z, w = y\n    return z"
    )
    plain = "def f(x):\n    y = g(x)\n    z, w = y\n    return z"
    codes = []
    for source in (annotated, plain):
        made: dict[str, Any] = {}
        exec(source, made)
        codes.append([(i.opname, i.argrepr) for i in dis.get_instructions(made["f"])])
    assert codes[0] == codes[1]
    attention = CausalSelfAttention.forward.__wrapped__  # type: ignore[attr-defined]
    assert "__tap__" not in attention.__code__.co_names


@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_every_model_of_the_family_can_be_looked_into(entry: Any) -> None:
    """Captured, nothing changes; attention weights add up to one and an edit reaches the logits."""
    config = next(iter(entry.load().format.config_class.presets().values()))()
    model = perturb(entry.load()(config).eval())
    token_ids = model.example(1, 40, "cpu")
    token_ids = torch.randn_like(token_ids) if token_ids.is_floating_point() else torch.randint(256, (1, 40))
    seq = token_ids.shape[1] if token_ids.ndim == 2 else config.context_length
    with torch.no_grad():
        plain = model(token_ids)
        with capture(model) as seen:
            looked = model(token_ids)
        assert torch.equal(looked, plain)
        assert set(seen) <= set(names(model))
        unseen = set(names(model)) - set(seen)
        # For padding, with a cache, and compiled only.
        assert all(name == "mask" or "absorbed" in name or "fetch" in name for name in unseen)
        for layer in range(config.num_layers):
            weights = seen[f"blocks.{layer}.attention.weights"]
            assert weights.axes == ("batch", "heads", "seq", "seq_k")
            torch.testing.assert_close(weights.values.sum(-1), torch.ones(1, config.num_heads, seq), atol=1e-5, rtol=0)
        with capture(model, edits={"blocks.0.attention.mixed": without_heads(1)}):
            assert not torch.equal(model(token_ids), plain)
        assert torch.equal(model(token_ids), plain)
