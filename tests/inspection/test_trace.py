"""Trace: the list is complete, in order, and its figures are those of the formulas."""

import dataclasses
import inspect
import json
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import einops
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from allformers.inspection import activation_names, meta_model, summarise, trace
from allformers.models.bert.bert import Bert, BertConfig
from allformers.models.gpt2 import gpt2
from allformers.models.gpt2.checkpoint import SIZES
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.models.llama.llama import Llama, LlamaConfig
from allformers.models.mixtral.mixtral import Mixtral, MixtralConfig
from allformers.models.registry import READING_ORDER
from allformers.models.vit.vit import ViT, ViTConfig
from conftest import perturb

TOKEN_IDS = torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    return GPT2(dataclasses.replace(GPT2Config.tiny(), num_layers=3)).eval()


def closed_formula(config: GPT2Config, batch: int, seq: int) -> int:
    """Two for each weight of a matrix and token, and four for each pair of positions and number of the width."""
    matrices = config.num_layers * (4 * config.embedding_dim**2 + 2 * config.embedding_dim * config.mlp_dim)
    head = config.vocab_size * config.embedding_dim
    return 2 * batch * seq * (matrices + head) + 4 * config.num_layers * batch * seq**2 * config.embedding_dim


LARGE = ("gpt2-medium", "gpt2-large", "gpt2-xl")


@pytest.mark.parametrize(
    "config",
    [pytest.param(size.config, id=size.name, marks=pytest.mark.slow if size.name in LARGE else ()) for size in SIZES],
)
def test_the_flops_of_every_size_are_those_of_the_closed_formula(config: GPT2Config) -> None:
    seq = config.context_length
    traced = trace(meta_model(GPT2, config), torch.zeros(1, seq, dtype=torch.long, device="meta"))
    assert traced.flops == closed_formula(config, 1, seq)
    assert traced.flops == pytest.approx(summarise(GPT2, config).flops_per_token * seq)
    assert sum(traced.by_module().values()) == traced.flops
    assert all(operation.milliseconds is None for operation in traced.operations)


def test_the_flops_are_those_that_pytorch_counts(model: GPT2) -> None:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(TOKEN_IDS)
    assert trace(model, TOKEN_IDS).flops == counter.get_total_flops() == closed_formula(model.config, 2, 13)


def test_the_list_holds_every_call_of_einops_and_every_linear_layer(model: GPT2) -> None:
    """Counted another way: by the interpreter's own report of each function that is called."""
    codes = {
        inspect.unwrap(getattr(einops, name)).__code__: name for name in ("rearrange", "repeat", "reduce", "einsum")
    }
    counted: Counter[str] = Counter()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if (
            event == "call"
            and frame.f_code in codes
            and frame.f_back
            and "einops" not in frame.f_back.f_code.co_filename
        ):
            counted[codes[frame.f_code]] += 1

    cache = model.make_cache()
    sys.setprofile(watch)
    try:
        model(TOKEN_IDS, cache=cache)
    finally:
        sys.setprofile(None)
    traced = trace(model, TOKEN_IDS, cache=model.make_cache())
    found = Counter(operation.kind for operation in traced.operations)
    linear = sum("Linear" in type(module).__name__ for module in model.modules())
    assert found == counted + Counter(linear=linear)
    assert found["einsum"] == 2 * 3


def test_each_operation_names_the_line_that_it_is_on(model: GPT2) -> None:
    for operation in trace(model, TOKEN_IDS).operations:
        assert operation.file in {"models/gpt2/gpt2.py", "generation/decoder.py"}
        line = (Path(gpt2.__file__).parents[2] / operation.file).read_text().splitlines()[operation.line - 1]
        if operation.kind == "linear":
            assert any(name in line for name in ("query_key_value(", "output(", "up(", "down(", "unembedding("))
        else:
            assert f"{operation.kind}(" in line
        assert operation.module in {name for name, _ in model.named_modules()}


def test_operations_come_in_order_with_their_axes(model: GPT2) -> None:
    block = [operation for operation in trace(model, TOKEN_IDS).operations if operation.module == "blocks.1.attention"]
    assert [operation.kind for operation in block] == ["linear", "rearrange", "einsum", "einsum", "rearrange", "linear"]
    fused, split, scores, *_ = block
    assert fused.pattern == "batch seq embed, (qkv heads head_dim) embed -> batch seq (qkv heads head_dim)"
    assert dict(split.sizes) == {"batch": 2, "seq": 13, "qkv": 3, "heads": 4, "head_dim": 16}
    assert scores.flops == 2 * 2 * 4 * 13 * 13 * 16
    assert scores.bytes_read == 4 * 2 * 2 * 4 * 13 * 16
    assert scores.bytes_written == 4 * 2 * 4 * 13 * 13
    assert split.bytes_written == 0  # another view of the same memory
    assert all(operation.milliseconds is not None and operation.milliseconds >= 0 for operation in block)


def test_with_a_cache_a_step_costs_what_one_token_costs(model: GPT2) -> None:
    cache = model.make_cache()
    model(TOKEN_IDS, cache=cache)
    step = trace(model, TOKEN_IDS[:, :1], cache=cache)
    scores = next(operation for operation in step.operations if operation.kind == "einsum")
    assert (scores.sizes["seq"], scores.sizes["seq_k"]) == (1, 14)
    matrices = closed_formula(model.config, 2, 1) - 4 * 3 * 2 * 64
    assert step.flops == matrices + 4 * 3 * 2 * 14 * 64


def test_layers_that_do_the_same_are_merged(model: GPT2) -> None:
    traced = trace(model, TOKEN_IDS)
    rows = traced.collapsed()
    assert sum(count for _, count in rows) == len(traced.operations)
    assert sum(operation.flops * count for operation, count in rows) == traced.flops
    assert traced.by_kind_of_module()["blocks.*.mlp"] == 3 * traced.by_module()["blocks.0.mlp"]
    assert {count for operation, count in rows if operation.module.startswith("blocks")} == {3}


@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_the_flops_of_every_model_are_those_that_pytorch_counts(entry: Any) -> None:
    """Those of experts too, and on the meta device, where routing is even; in bfloat16 a router's weight is a copy."""
    model_class = entry.load()
    config = model_class.checkpoint_format().config_class.tiny()
    model = perturb(model_class(config).eval())
    given = model.dummy_input(2, 20, "cpu")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(given)
    traced = trace(model, given)
    assert traced.flops == counter.get_total_flops()
    assert sum(operation.flops * count for operation, count in traced.collapsed()) == traced.flops
    assert {operation.module for operation in traced.operations} <= {name for name, _ in model.named_modules()}
    for operation in traced.operations:
        known = {axis: config.axes[axis] for axis in operation.sizes if axis in config.axes and axis != "mlp"}
        assert {axis: operation.sizes[axis] for axis in known} == known
    on_meta = meta_model(model_class, config, torch.bfloat16)
    given = given.to("meta", torch.bfloat16 if given.is_floating_point() else given.dtype)
    assert trace(on_meta, given).flops == traced.flops


def test_an_expert_multiplies_the_tokens_that_are_routed_to_it() -> None:
    config = MixtralConfig.tiny()
    traced = trace(perturb(Mixtral(config).eval()), TOKEN_IDS)
    experts = [operation for operation in traced.operations if operation.function == "expert"]
    assert len(experts) == config.num_layers * config.num_experts * 3
    assert experts[0].pattern == "routed embed, expert_mlp embed -> routed expert_mlp"
    assert experts[0].module == "blocks.0.mlp"
    routed = sum(operation.sizes["routed"] for operation in experts)
    assert routed == config.num_layers * 3 * TOKEN_IDS.numel() * config.num_experts_per_token
    router = next(operation for operation in traced.operations if operation.function == "route")
    assert router.pattern == "tokens embed, experts embed -> tokens experts"


def test_a_square_weight_is_a_pattern_too_and_a_classifier_has_a_row_for_each_image() -> None:
    bert = Bert(BertConfig.tiny()).eval()
    patterns = {operation.pattern for operation in trace(bert, TOKEN_IDS).operations}
    assert "batch seq embed, embed_out embed -> batch seq embed_out" in patterns
    vit = ViT(ViTConfig.tiny()).eval()
    last = trace(vit, vit.dummy_input(2, 1, "cpu")).operations[-1]
    assert last.pattern == "batch embed, labels embed -> batch labels"


def test_a_function_belongs_to_the_module_that_calls_it() -> None:
    traced = trace(Llama(LlamaConfig.tiny()).eval(), TOKEN_IDS)
    assert {o.module for o in traced.operations if o.function == "apply_rope"} == {
        "blocks.0.attention",
        "blocks.1.attention",
    }
    assert {o.module for o in traced.operations if o.function == "rope_cos_sin"} == {""}


def test_it_can_be_read_as_json_and_drawn(model: GPT2) -> None:
    traced = trace(model, TOKEN_IDS, "a title")
    content = json.loads(traced.to_json())
    assert content["title"] == "a title"
    assert content["flops"] == traced.flops
    assert [row["pattern"] for row in content["operations"]] == [row.pattern for row in traced.operations]
    drawn = traced.to_mermaid()
    assert drawn.startswith("flowchart TD")
    assert drawn.count("subgraph") == drawn.count("\n  end") == 4
    assert "blocks.*.attention x 3" in drawn


def test_tracing_changes_nothing_and_leaves_nothing_behind(model: GPT2) -> None:
    before = model(TOKEN_IDS)
    originals = {name: getattr(gpt2, name) for name in ("rearrange", "einsum")}
    trace(model, TOKEN_IDS)
    assert {name: getattr(gpt2, name) for name in originals} == originals
    assert torch.equal(model(TOKEN_IDS), before)
    with pytest.raises(ValueError, match="200"):
        trace(model, torch.zeros(1, 200, dtype=torch.long))
    assert {name: getattr(gpt2, name) for name in originals} == originals
    assert activation_names(model)
