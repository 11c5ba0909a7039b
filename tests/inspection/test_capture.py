"""Capture: what is captured was computed, a hook takes effect, and what is not looked into is untouched."""

import contextlib
import copy
import dataclasses
import dis
import inspect
import io
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import einops
import pytest
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from allformers.checkpoints.config_json import write_config
from allformers.checkpoints.loading import checkpoint_tensors
from allformers.experiments.rotary import RotaryGPT2
from allformers.inspection import ablate_heads, activation_names, capture, patch
from allformers.models.gpt2.gpt2 import GPT2, CausalSelfAttention, GPT2Config
from allformers.models.llama.llama import Llama, LlamaConfig
from allformers.models.registry import READING_ORDER
from allformers.nn.shapes import ShapeError, checked
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
    config = transformers.GPT2Config(**write_config(GPT2.checkpoint_format(), model.config))
    config._attn_implementation = "eager"
    reference = transformers.GPT2LMHeadModel(config).eval()
    reference.load_state_dict(checkpoint_tensors(model), strict=False)
    return reference


def test_attention_weights_are_the_references_in_every_layer_and_head(
    model: GPT2, reference: Any, token_ids: Tensor
) -> None:
    with capture(model, "blocks.*.attention.weights") as activations:
        model(token_ids)
    with torch.no_grad():
        expected = reference(token_ids, output_attentions=True).attentions
    assert len(activations) == len(expected) == LAYERS
    for ours, theirs in zip(activations.by_layer("attention.weights"), expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-5
        assert torch.allclose(ours.sum(-1), torch.ones(2, 4, 13), atol=1e-6)


def test_the_residual_stream_is_the_references(model: GPT2, reference: Any, token_ids: Tensor) -> None:
    with capture(model) as activations:
        model(token_ids)
    with torch.no_grad():
        expected = reference(token_ids, output_hidden_states=True).hidden_states
    ours = [*activations.by_layer("x"), model.final_norm(activations[f"blocks.{LAYERS - 1}"].values)]
    for one, other in zip(ours, expected, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_each_stream_plus_what_a_part_wrote_is_the_next_exactly(model: GPT2, token_ids: Tensor) -> None:
    with capture(model) as activations:
        logits = model(token_ids)
    assert torch.equal(activations["embed"].values, activations["blocks.0.x"].values)
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        x_mid = activations[f"{block}.x_mid"].values
        assert torch.equal(activations[f"{block}.x"].values + activations[f"{block}.attention"].values, x_mid)
        assert torch.equal(x_mid + activations[f"{block}.mlp"].values, activations[block].values)
        if layer:
            assert torch.equal(activations[f"blocks.{layer - 1}"].values, activations[f"{block}.x"].values)
    assert torch.equal(activations["logits"].values, logits)


def test_every_tensor_has_the_axes_that_its_name_says(model: GPT2, token_ids: Tensor) -> None:
    """What is annotated inside functions is checked here: nothing checks it when the model runs."""
    with capture(model) as activations:
        model(token_ids)
    assert set(activations) == set(activation_names(model))
    sizes = {**model.config.axes, "batch": 2, "seq": 13, "seq_k": 13, "1": 1}
    for tensor in activations.values():
        broadcast = tensor.name.endswith("mask")
        for axis, size in tensor.sizes.items():
            expected = math.prod(sizes[name] for name in axis.strip("()").split())
            assert size == expected or (broadcast and axis == "batch" and size == 1), (tensor.name, axis)
    assert activations["blocks.1.attention.weights"].axes == ("batch", "heads", "seq", "seq_k")


def test_scores_are_what_softmax_is_taken_of(model: GPT2, token_ids: Tensor) -> None:
    with capture(model, "blocks.*.attention.*") as activations:
        model(token_ids)
    attention = {
        name: activations[f"blocks.2.attention.{name}"].values for name in ("scores", "weights", "values", "mixed")
    }
    assert torch.equal(attention["scores"].softmax(-1), attention["weights"])
    assert (attention["scores"].triu(1) != 0).any()
    assert torch.allclose(attention["weights"] @ attention["values"], attention["mixed"], atol=1e-6)


def test_with_a_cache_there_are_more_keys_than_queries(model: GPT2, token_ids: Tensor) -> None:
    cache = model.make_cache()
    with capture(model, "blocks.0.attention.*") as activations:
        model(token_ids[:, :9], cache=cache)
        model(token_ids[:, 9:], cache=cache)
    sizes = activations["blocks.0.attention.weights"].sizes
    assert (sizes["seq"], sizes["seq_k"]) == (4, 13)
    assert activations["blocks.0.attention.keys"].sizes["seq_k"] == 13


def test_only_what_was_asked_for_is_kept(model: GPT2, token_ids: Tensor) -> None:
    with capture(model, "blocks.1.attention.weights", "logits") as activations:
        model(token_ids)
    assert list(activations) == ["blocks.1.attention.weights", "logits"]
    with capture(model, "blocks.*") as blocks:
        model(token_ids)
    assert list(blocks) == ["blocks.0", "blocks.1", "blocks.2"]
    with pytest.raises(KeyError, match=r"blocks\.0\.attention\.weights.*blocks\.1"):
        activations["blocks.0.attention.weights"]


def test_results_are_the_same_to_the_bit_and_gradients_still_flow(model: GPT2, token_ids: Tensor) -> None:
    plain = model(token_ids)
    same = dict.fromkeys(activation_names(model), lambda values: values.clone())
    with capture(model, hooks=same):
        hooked = model(token_ids)
    assert torch.equal(plain, hooked)
    (wanted,) = torch.autograd.grad(plain.sum(), model.token_embedding.weight)
    (found,) = torch.autograd.grad(hooked.sum(), model.token_embedding.weight)
    assert torch.equal(wanted, found)


def test_an_ablated_head_passes_nothing_on(model: GPT2, token_ids: Tensor) -> None:
    with capture(model, hooks={"blocks.1.attention.mixed": ablate_heads(2, 3)}) as activations:
        ablated = model(token_ids)
    mixed = activations["blocks.1.attention.mixed"].values
    assert torch.equal(mixed[:, 2:], torch.zeros_like(mixed[:, 2:]))
    # The same by taking the heads' columns out of the output projection.
    other = GPT2(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        columns = rearrange(other.blocks[1].attention.output.weight, "e (h d) -> e h d", h=4)
        columns[:, 2:] = 0
    assert torch.allclose(ablated, other(token_ids), atol=1e-5)
    assert not torch.allclose(ablated, model(token_ids), atol=1e-2)


def test_a_head_that_is_not_there_is_refused(model: GPT2, token_ids: Tensor) -> None:
    for head in (4, 99, -1):
        with (
            capture(model, hooks={"blocks.1.attention.mixed": ablate_heads(head)}),
            pytest.raises(ValueError, match=rf"head {head}\b.* 0 to 3"),
        ):
            model(token_ids)


def test_patching_the_whole_stream_makes_one_run_the_other(model: GPT2, token_ids: Tensor) -> None:
    with capture(model, "blocks.1") as activations:
        expected = model(token_ids)
    with capture(model, hooks={"blocks.1": patch(activations["blocks.1"].values)}):
        patched = model(torch.zeros_like(token_ids))
    assert torch.equal(patched, expected)


def test_a_hook_that_changes_the_shape_is_refused(model: GPT2, token_ids: Tensor) -> None:
    message = r"blocks\.0\.mlp\.activated .*\(2, 13, 1\).*\(2, 13, 256\).*batch seq"
    with (
        capture(model, hooks={"blocks.0.mlp.activated": lambda x: x[..., :1]}),
        pytest.raises(ShapeError, match=message),
    ):
        model(token_ids)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blocks.9.attention.weights", r"blocks\.9\.attention\.weights.*blocks\.0\.attention"),
        ("nonsense", "nonsense.*activated, attention, embed"),
    ],
)
def test_a_name_that_is_not_there_is_refused_before_the_model_runs(model: GPT2, pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message), capture(model, pattern):
        pass
    with pytest.raises(ValueError, match=message), capture(model, hooks={pattern: torch.zeros_like}):
        pass


def test_afterwards_the_model_is_as_it_was_even_after_an_error(model: GPT2, token_ids: Tensor) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("from the hook")

    class Untouched(GPT2):
        pass

    forward = vars(GPT2)["forward"]
    for one in (model, Untouched(model.config)):
        with pytest.raises(RuntimeError, match="from the hook"), capture(one, hooks={"logits": fail}):
            one(token_ids)
    for module in model.modules():
        assert not {"forward", "embed", "unembed", "mask", "residual_stream"} & set(vars(module))
    assert forward is vars(GPT2)["forward"]
    assert "forward" not in vars(Untouched)


def test_a_capture_inside_another_leaves_it_its_tensors_and_its_hooks(model: GPT2, token_ids: Tensor) -> None:
    without = {"blocks.*.attention.mixed": ablate_heads(0, 1)}
    plain = model(token_ids)
    with capture(model, hooks=without):
        ablated = model(token_ids)
    with capture(model, hooks=without) as outer:
        with capture(model, "logits") as inner, capture(model.blocks[0], "attention.mixed") as of_a_part:
            assert torch.equal(model(token_ids), ablated)
        assert torch.equal(inner["logits"].values, outer["logits"].values)
        assert torch.equal(of_a_part["attention.mixed"].values, outer["blocks.0.attention.mixed"].values)
        assert not of_a_part["attention.mixed"].values[:, :2].any()
    assert len(outer) == len(activation_names(model))
    assert not torch.equal(plain, ablated)
    assert torch.equal(model(token_ids), plain)


def test_hooks_of_several_captures_apply_in_the_order_in_which_these_began(model: GPT2, token_ids: Tensor) -> None:
    with capture(model, "blocks.0.x", hooks={"blocks.0.x": lambda x: x + 1}) as outer:
        with capture(model, "blocks.0.x", hooks={"blocks.0.x": lambda x: 2 * x}) as inner:
            model(token_ids)
        assert torch.equal(inner["blocks.0.x"].values, 2 * (model.embed(token_ids) + 1))
        assert torch.equal(outer["blocks.0.x"].values, inner["blocks.0.x"].values)


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_captures_may_end_in_any_order(model: GPT2, token_ids: Tensor, first_to_end: int) -> None:
    plain = model(token_ids)
    hooks = {"blocks.0.x": torch.zeros_like}
    captures = [capture(model, "logits", hooks=hooks), capture(model, "logits")]
    activations = [one.__enter__() for one in captures]
    captures[first_to_end].__exit__(None, None, None)
    changed = model(token_ids)
    captures[1 - first_to_end].__exit__(None, None, None)
    assert torch.equal(changed, plain) == (first_to_end == 0)
    assert [len(one) for one in activations] == ([0, 1] if first_to_end == 0 else [1, 0])
    assert torch.equal(model(token_ids), plain)


def _captures_in_threads(count: int) -> list[str]:
    """Captures of one model in four threads, some with a hook, some nested; what was not as it should be."""
    model = perturb(GPT2(GPT2Config.tiny()).eval())
    forward = vars(GPT2)["forward"]
    barrier = threading.Barrier(4)
    faults: list[str] = []

    def work(number: int) -> None:
        token_ids = torch.randint(256, (1, 3 + number), generator=torch.Generator().manual_seed(number))
        without = {"blocks.*.attention.mixed": ablate_heads(number)}
        with torch.no_grad():
            plain = expected[number]
            barrier.wait()
            for turn in range(count // 4):
                hooks = without if turn % 2 else {}
                with (
                    capture(model, "blocks.*.x", "logits", hooks=hooks) as outer,
                    capture(model, "logits") if turn % 3 else contextlib.nullcontext(),
                ):
                    logits = model(token_ids)
                if not torch.equal(logits, plain[turn % 2]) or not torch.equal(outer["logits"].values, logits):
                    faults.append(f"thread {number}, turn {turn}: other logits")
                if {tuple(tensor.values.shape[:2]) for tensor in outer.values()} != {tuple(token_ids.shape)}:
                    faults.append(f"thread {number}, turn {turn}: another thread's tensors")
                if not torch.equal(copy.deepcopy(model)(token_ids), plain[0]):
                    faults.append(f"thread {number}, turn {turn}: a copy with hooks")

    expected = []
    for number in range(4):
        token_ids = torch.randint(256, (1, 3 + number), generator=torch.Generator().manual_seed(number))
        with torch.no_grad(), capture(model, "logits", hooks={"blocks.*.attention.mixed": ablate_heads(number)}):
            ablated = model(token_ids)
        with torch.no_grad():
            expected.append((model(token_ids), ablated))
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if vars(GPT2)["forward"] is not forward:
        faults.append("the class has kept its hooks")
    return faults


def test_a_capture_has_the_passes_of_its_own_thread() -> None:
    assert _captures_in_threads(24) == []


@pytest.mark.slow
def test_two_hundred_captures_in_four_threads_leave_nothing_behind() -> None:
    assert _captures_in_threads(200) == []


def test_a_capture_that_ends_in_another_thread_is_over(model: GPT2, token_ids: Tensor) -> None:
    opened = capture(model, "logits")
    activations = opened.__enter__()
    ending = threading.Thread(target=opened.__exit__, args=(None, None, None))
    ending.start()
    ending.join()
    with capture(model, "logits") as later:
        model(token_ids)
    assert (len(activations), len(later)) == (0, 1)


def test_a_copy_or_a_pickle_made_inside_is_a_plain_model(model: GPT2, token_ids: Tensor) -> None:
    plain, saved = model(token_ids), io.BytesIO()
    with capture(model, "logits", hooks={"logits": torch.zeros_like}) as activations:
        copied = copy.deepcopy(model)
        torch.save(model, saved)
        assert torch.equal(copied(token_ids), plain)
    assert len(activations) == 0
    saved.seek(0)
    for other in (copied, torch.load(saved, weights_only=False)):
        assert torch.equal(other(token_ids), plain)
        assert vars(other).keys() == vars(model).keys()


def test_another_model_of_the_same_class_is_not_touched(model: GPT2, token_ids: Tensor) -> None:
    other = GPT2(model.config).eval()
    with capture(model) as activations:
        other(token_ids)
    assert len(activations) == 0


def test_generation_is_captured_too(model: GPT2, token_ids: Tensor) -> None:
    with capture(model, "logits") as activations:
        written = model.generate(token_ids, max_new_tokens=3, temperature=0)
    assert torch.equal(activations["logits"].values[:, -1].argmax(-1), written[:, -1])


def test_generation_in_training_mode_is_captured_too(model: GPT2, token_ids: Tensor) -> None:
    training = copy.deepcopy(model).train()
    with capture(training, "logits", "blocks.1.x") as activations:
        written = training.generate(token_ids, max_new_tokens=3, temperature=0)
    assert list(activations) == ["blocks.1.x", "logits"]
    assert torch.equal(activations["logits"].values[:, -1].argmax(-1), written[:, -1])


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
    attention = inspect.unwrap(CausalSelfAttention.forward)
    assert "__hook__" not in attention.__code__.co_names


class Stated(nn.Module):
    """A module whose variables have axes that are stated in each way there is."""

    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        first, second = rearrange(x, "batch seq (pair half) -> pair batch seq half", pair=2)
        made = einops.repeat(2 * first, "batch seq half -> batch seq copies half", copies=3)
        read = made + 1
        used = read.sum(2)
        handed = used * 2
        joined = rearrange(second, "batch seq half -> batch (seq half)")
        plain = rearrange(joined, "batch (seq half) -> batch seq half", seq=x.shape[1])
        again = rearrange(plain, "batch seq half -> batch half seq")
        again = rearrange(again, "batch half seq -> batch seq half")
        vague = rearrange(x, "... embed -> embed ...")
        silent = x.sum()
        if x.shape[1] > 100:
            branch: Float[Tensor, "batch embed"] = x[:, 0]
            silent = silent + branch.sum()
        else:
            never = reduce(plain, "batch seq half -> batch", "sum")
            silent = silent + 0 * never.sum()
        mean = reduce(read, "batch seq copies half -> batch seq half", "mean")
        total = self.hand(handed, shift=plain) + mean
        return torch.cat([total + again, total], dim=-1) + 0 * (silent + vague.sum())

    def hand(
        self, given: Float[Tensor, "batch seq half"], shift: Float[Tensor, "batch seq half"]
    ) -> Float[Tensor, "batch seq half"]:
        made = einsum(given, shift, "batch seq half, batch seq half -> batch seq half")
        shift = shift + made
        inner = einsum(given, made, "batch seq half, batch seq other -> batch half other")
        return einsum(inner, given, "batch half other, batch seq half -> batch seq other") + shift


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("first", "batch seq half"),  # a pattern made it and its neighbour, and none reads it
        ("second", "batch seq half"),  # the same, and one reads it
        ("made", "batch seq copies half"),  # a pattern made it, and none reads it
        ("read", "batch seq copies half"),  # a pattern reads it, and none made it
        ("handed", "batch seq half"),  # the argument of another method
        ("joined", "batch (seq half)"),  # brackets, as nothing else tells
        ("plain", "batch seq half"),  # without brackets, as something else tells
        ("again", "batch seq half"),  # it was something else before
        ("mean", "batch seq half"),
        ("shift", "batch seq half"),  # an argument that is made anew
        ("inner", "batch half other"),
    ],
)
def test_a_variable_has_the_axes_that_a_pattern_states(name: str, axes: str) -> None:
    module, x = Stated(), torch.randn(2, 5, 8)
    with capture(module) as activations:
        result = module(x)
    assert torch.equal(result, module(x))
    assert activations[name].axes == tuple(re.findall(r"\([^)]*\)|\w+", axes))
    assert list(activations[name].sizes.values()) == list(activations[name].values.shape)


def test_what_no_pattern_states_is_not_there_and_a_name_is_one_tensor() -> None:
    module, x = Stated(), torch.randn(2, 5, 8)
    known = activation_names(module)
    assert not {"used", "vague", "silent", "total", "never"} & set(known)
    assert len(known) == len(set(known))
    calls: list[tuple[int, ...]] = []

    def note(values: Tensor) -> Tensor:
        calls.append(tuple(values.shape))
        return values

    with capture(module, "made", hooks={"made": note}):
        module(x)
    assert calls == [(2, 5, 3, 4)]  # `forward`'s, not that of the method it calls
    with capture(module, "branch") as activations:
        module(x)
        assert "branch" not in activations
        module(torch.randn(2, 101, 8))
    assert activations["branch"].axes == ("batch", "embed")


class Mistaken(nn.Module):
    """A module with an annotation that names too many axes."""

    def forward(self, x: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch embed"]:
        claimed: Float[Tensor, "batch seq embed"] = x + 1
        return claimed - 1


class Branching(nn.Module):
    """A module with a pattern, in a branch that is not taken, that names too many axes."""

    def forward(self, x: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch embed"]:
        other = x - 1
        return other if other.ndim == 2 else rearrange(other, "batch seq embed -> batch (seq embed)")


def test_an_annotation_with_another_number_of_axes_raises_and_a_pattern_that_did_not_run_does_not() -> None:
    wrong, right, x = Mistaken(), Branching(), torch.randn(2, 4)
    with pytest.raises(ShapeError, match=r"claimed.* 2 .* 3.*batch seq embed"), capture(wrong):
        wrong(x)
    with capture(right) as activations:
        assert torch.equal(right(x), x - 1)
    assert "other" in activation_names(right)
    assert "other" not in activations
    with pytest.raises(ShapeError, match=r"other.* 2 .* 3"), capture(right, hooks={"other": torch.zeros_like}):
        right(x)


class SmoothGPT2(GPT2):
    """GPT-2 that scores with a part of its own."""

    @checked
    def unembed(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq vocab"]:
        scale = torch.full((1,), 0.5)
        softened = einsum(super().unembed(x), scale, "batch seq vocab, one -> batch seq vocab")
        return softened


def test_a_class_of_ones_own_has_its_parents_checkpoints_and_can_be_looked_into() -> None:
    model = SmoothGPT2.from_pretrained("bundled")
    assert type(model) is SmoothGPT2
    token_ids = torch.tensor([list(b"The for statement")])
    with capture(model, "softened", "blocks.*.attention.weights") as activations:
        logits = model(token_ids)
    parent = GPT2.from_pretrained("bundled")
    torch.testing.assert_close(logits, 0.5 * parent(token_ids))
    assert torch.equal(activations["softened"].values, logits.detach())
    assert len(activations.by_layer("attention.weights")) == 4


SCRIPT = """
import torch
from allformers import GPT2
from allformers.inspection import capture

class Mine(GPT2):
    def embed(self, token_ids, cache=None):
        return 2 * super().embed(token_ids, cache)

model, token_ids = Mine.from_pretrained("bundled"), torch.tensor([[72, 101]])
with torch.no_grad(), capture(model, "blocks.0.x", "blocks.0.attention.queries") as activations:
    model(token_ids)
    print(type(model).__name__, torch.equal(activations["blocks.0.x"].values, 2 * GPT2.embed(model, token_ids)))
print(activations["blocks.0.attention.queries"].axes)
"""


@pytest.mark.slow
def test_so_has_a_class_in_a_script(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    command = [sys.executable, str(tmp_path / "mine.py")]
    told = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(root)}, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines() == ["Mine True", "('batch', 'heads', 'seq', 'head_dim')"]


def test_what_an_experiment_overrides_is_what_is_captured() -> None:
    model = RotaryGPT2(GPT2Config.tiny()).eval()
    token_ids = torch.randint(256, (1, 12))
    plain = model(token_ids)
    with capture(model) as activations:
        assert torch.equal(model(token_ids), plain)
    assert activations["blocks.1.attention.keys"].axes == ("batch", "heads", "seq_k", "head_dim")


def test_grouped_heads_are_numbered_through_those_of_a_key_head_together() -> None:
    config = LlamaConfig.tiny(num_heads=6, num_kv_heads=3, head_dim=10)
    model = perturb(Llama(config).eval())
    token_ids = torch.randint(256, (2, 9))
    with torch.no_grad(), capture(model) as activations:
        plain = model(token_ids)
    weights = activations["blocks.1.attention.weights"]
    assert weights.axes == ("batch", "kv_heads", "group", "seq", "seq_k")
    by_head = activations.by_layer("attention.weights")[1]
    assert by_head.shape == weights.by_head.shape == (2, 6, 9, 9)
    assert torch.equal(by_head[:, 3], weights.values[:, 1, 1])
    assert activations.by_layer("attention.keys")[1].shape == (2, 3, 9, 10)
    for hooked in ("mixed", "weights"):
        with torch.no_grad(), capture(model, hooks={f"blocks.1.attention.{hooked}": ablate_heads(3, 4)}) as without:
            ablated = model(token_ids)
        mixed = without["blocks.1.attention.mixed"].by_head
        assert not mixed[:, [3, 4]].any()
        assert torch.equal(mixed[:, [0, 1, 2, 5]], activations["blocks.1.attention.mixed"].by_head[:, [0, 1, 2, 5]])
        other = copy.deepcopy(model)
        with torch.no_grad():
            rearrange(other.blocks[1].attention.output.weight, "embed (heads width) -> embed heads width", heads=6)[
                :, 3:5
            ] = 0
            torch.testing.assert_close(ablated, other(token_ids), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(ablated, plain, atol=1e-2)


@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_every_model_of_the_family_can_be_looked_into(entry: Any) -> None:
    """Captured, nothing changes; attention weights add up to one and a hook reaches the logits."""
    config = entry.load().checkpoint_format().config_class.tiny()
    model = perturb(entry.load()(config).eval())
    token_ids = model.dummy_input(1, 40, "cpu")
    token_ids = torch.randn_like(token_ids) if token_ids.is_floating_point() else torch.randint(256, (1, 40))
    seq = token_ids.shape[1] if token_ids.ndim == 2 else config.context_length
    with torch.no_grad():
        plain = model(token_ids)
        with capture(model) as activations:
            looked = model(token_ids)
        assert torch.equal(looked, plain)
        assert set(activations) <= set(activation_names(model))
        unseen = {name.rpartition(".")[2] for name in set(activation_names(model)) - set(activations)}
        # With a cache, and compiled, only.
        absorbed = {"absorbed", "kv_up", "k_up", "v_up", "q_absorbed", "mixed_latents"}
        absorbed |= {"plane", "stretched"}  # for images of another size only
        assert unseen <= absorbed | {"gather", "gate", "up", "gate_weight", "up_weight", "down_weight", "activated"}
        grouped = "group" in config.axes
        for layer, by_head in enumerate(activations.by_layer("attention.weights")):
            attention = f"blocks.{layer}.attention"
            heads = ("kv_heads", "group") if grouped else ("heads",)
            assert activations[f"{attention}.weights"].axes == ("batch", *heads, "seq", "seq_k")
            assert activations[f"{attention}.queries"].axes[:-1] == ("batch", *heads, "seq")
            assert activations[f"{attention}.keys"].axes[-2] == activations[f"{attention}.values"].axes[-2] == "seq_k"
            torch.testing.assert_close(by_head.sum(-1), torch.ones(1, config.num_heads, seq), atol=1e-5, rtol=0)
            scores = activations[f"{attention}.scores"].values
            assert torch.equal(scores.softmax(-1), activations[f"{attention}.weights"].values)
            assert {f"{attention}.mixed", f"blocks.{layer}.x_mid"} <= set(activations)
        assert "logits" in activations
        with capture(model, hooks={"blocks.0.attention.mixed": ablate_heads(1)}):
            assert not torch.equal(model(token_ids), plain)
        assert torch.equal(model(token_ids), plain)
