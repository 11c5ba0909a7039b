"""What a `config.json` says of RoPE, in every way that files say it: the reference's logits, or a refusal by name.

Small models of all families with RoPE, every parameter perturbed, and a text longer than the context they state, so
that each setting shows in the logits. A few families and ways are for every day; all of them are slow.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.config_json import read_config
from allformers.models.gpt2.checkpoint import FORMAT as GPT2_FORMAT
from allformers.models.llama.checkpoint import FORMAT as LLAMA_FORMAT
from allformers.models.registry import load, load_config
from conftest import perturb

FLOAT32_BAR = 5e-6

SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {},
    "Mixtral": {"num_local_experts": 2},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Gemma2": {},
    "Gemma3": {"layer_types": ["sliding_attention", "full_attention"]},
    "DeepseekV3": {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 12,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
}

NO_HEAD_DIM = ("Qwen2", "DeepseekV3")
"""Families whose heads have the width that the stream leaves them, or one that is called otherwise."""

LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 5.0]}
ORIGINAL = {"original_max_position_embeddings": 16}

EQUAL: dict[str, dict[str, Any]] = {
    "nothing": {},
    "null": {"rope_parameters": None, "rope_scaling": None},
    "empty": {"rope_parameters": {}, "rope_scaling": {}},
    "theta at the top": {"rope_theta": 300.0},
    "theta at the top, scaling null": {"rope_theta": 300.0, "rope_scaling": None},
    "theta inside": {"rope_parameters": {"rope_theta": 300.0, "rope_type": "default"}},
    "theta twice": {"rope_theta": 300.0, "rope_parameters": {"rope_theta": 300.0}},
    "theta null beside": {"rope_theta": None, "rope_parameters": {"rope_theta": 300.0}},
    "theta null in parameters": {"rope_parameters": {"rope_theta": None}, "rope_scaling": LINEAR},
    "theta inside scaling": {"rope_scaling": {"rope_theta": 300.0, **LINEAR}},
    "linear": {"rope_parameters": LINEAR},
    "linear, below one": {"rope_parameters": LINEAR | {"factor": 0.5}},
    "linear, old": {"rope_theta": 300.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "linear, both names": {"rope_scaling": {"type": "linear", **LINEAR}},
    "linear beside the default": {"rope_parameters": {"rope_type": "default"}, "rope_scaling": LINEAR},
    "linear beside an empty object": {"rope_parameters": LINEAR, "rope_scaling": {}},
    "linear, whole heads": {"partial_rotary_factor": 1.0, "rope_parameters": LINEAR},
    "dynamic": {"rope_parameters": DYNAMIC},
    "llama3": {"rope_parameters": LLAMA3 | ORIGINAL},
    "llama3, no original context": {"rope_scaling": LLAMA3},
    "llama3, original context at the top": {**ORIGINAL, "rope_scaling": LLAMA3},
    "yarn": {"rope_parameters": YARN | ORIGINAL},
    "yarn, old": {"rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True} | ORIGINAL},
    "yarn, no original context": {"rope_parameters": YARN},
    "yarn, original context at the top": {**ORIGINAL, "rope_parameters": YARN},
    "yarn, original context twice": {**ORIGINAL, "rope_parameters": YARN | ORIGINAL},
    "yarn, a context that no pair comes round in": {"rope_parameters": YARN | {"original_max_position_embeddings": 3}},
    "yarn, attention_factor": {"rope_parameters": YARN | ORIGINAL | {"attention_factor": 1.5}},
    "yarn, attention_factor null": {"rope_parameters": YARN | ORIGINAL | {"attention_factor": None}},
    "yarn, mscale": {"rope_parameters": YARN | ORIGINAL | {"mscale": 2.0, "mscale_all_dim": 0.5}},
    "yarn, mscale alone": {"rope_parameters": YARN | ORIGINAL | {"mscale": 2.0}},
    "yarn, mscale_all_dim alone": {"rope_parameters": YARN | ORIGINAL | {"mscale_all_dim": 2.0}},
    "yarn, beta": {"rope_parameters": YARN | ORIGINAL | {"beta_fast": 4.0, "beta_slow": 0.5}},
    "yarn, beta null": {"rope_parameters": YARN | ORIGINAL | {"beta_fast": None, "beta_slow": None}},
    "yarn, not truncated": {"rope_parameters": YARN | ORIGINAL | {"truncate": False}},
    "yarn, below one": {"rope_parameters": YARN | ORIGINAL | {"factor": 0.5}},
    "longrope": {"rope_parameters": LONGROPE | ORIGINAL},
    "longrope, not reached": {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 64, "factor": 2.0}},
    "longrope, factor": {"rope_parameters": LONGROPE | ORIGINAL | {"factor": 8.0}},
    "longrope, factor null": {"rope_parameters": LONGROPE | ORIGINAL | {"factor": None}},
    "longrope, attention_factor": {"rope_parameters": LONGROPE | ORIGINAL | {"attention_factor": 0.7}},
    "longrope, original context at the top": {**ORIGINAL, "rope_scaling": LONGROPE},
    "longrope, no original context": {"rope_scaling": LONGROPE},
}
"""Ways that give the reference's logits: the fields that replace `rope_parameters` in a file."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{f"parameters {value!r}": ({"rope_parameters": value}, "rope_parameters") for value in (0, "", [], False, [1])},
    **{f"scaling {value!r}": ({"rope_scaling": value}, "rope_scaling") for value in (0, "", [], False, "x")},
    "theta null": ({"rope_theta": None}, "rope_theta"),
    "theta null inside": ({"rope_parameters": {"rope_theta": None}}, "rope_parameters.rope_theta"),
    "theta twice": ({"rope_theta": 300.0, "rope_parameters": {"rope_theta": 500.0}}, "rope_theta .*300.*500"),
    "theta lost": ({"rope_parameters": {"rope_theta": 300.0}, "rope_scaling": LINEAR}, "rope_theta is 300"),
    "type null": ({"rope_parameters": {"rope_type": None}}, "rope_type"),
    "type unknown": ({"rope_parameters": {"rope_type": "proportional"}}, "rope_type.*proportional"),
    "two types": ({"rope_parameters": {"type": "yarn", **LINEAR}}, "type is 'yarn' .*rope_type is 'linear'"),
    "nested twice": ({"rope_parameters": {"rope_parameters": LINEAR}}, "rope_parameters.rope_parameters"),
    **{
        f"{scaling['rope_type']}, no {name}": (
            {"rope_parameters": {key: value for key, value in scaling.items() if key != name}},
            f"rope_parameters.{name} is missing",
        )
        for scaling in (LINEAR, DYNAMIC, LLAMA3, YARN, LONGROPE)
        for name in scaling
        if name != "rope_type"
    },
    **{
        f"{scaling['rope_type']}, {name} null": ({"rope_parameters": scaling | {name: None}}, name)
        for scaling in (LINEAR, DYNAMIC, LLAMA3, YARN, LONGROPE)
        for name in scaling
        if name != "rope_type"
    },
    "original context null": ({"rope_parameters": YARN | {"original_max_position_embeddings": None}}, "original_max_"),
    "original context null at the top": (
        {"original_max_position_embeddings": None, "rope_parameters": YARN},
        "original_max_position_embeddings",
    ),
    "original context twice": (
        {"original_max_position_embeddings": 8, "rope_parameters": YARN | ORIGINAL},
        "original_max_position_embeddings is 8 .*is 16",
    ),
    "truncate null": ({"rope_parameters": YARN | {"truncate": None}}, "truncate"),
    "part of a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "part of a head, inside": ({"rope_parameters": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "factors for other heads": ({"rope_parameters": LONGROPE | {"long_factor": [1.0, 2.0]}}, "long_factor has 2 .* 4"),
    "theta 1 in yarn": ({"rope_theta": 1.0, "rope_parameters": YARN}, "rope_theta must be above 1"),
}
"""Ways that are refused: the fields, and what the message names."""

GEMMA3 = {
    "full_attention": {"rope_type": "linear", "rope_theta": 2e3, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
}
GEMMA3_EQUAL: dict[str, dict[str, Any]] = {
    **{name: EQUAL[name] for name in ("nothing", "null", "theta at the top")},
    **{
        f"{scaling['rope_type']} in full layers": {"rope_parameters": {"full_attention": scaling}}
        for scaling in (DYNAMIC, YARN | ORIGINAL, LONGROPE | ORIGINAL, LLAMA3)
    },
    "linear in full layers, an empty object beside": {
        "rope_parameters": {"full_attention": LINEAR},
        "rope_scaling": {},
    },
    "of each type": {"rope_parameters": GEMMA3},
    "full type null": {"rope_parameters": GEMMA3 | {"full_attention": None}},
    "sliding type missing": {"rope_parameters": {"full_attention": GEMMA3["full_attention"]}},
    "both bases at the top": {"rope_theta": 2e3, "rope_local_base_freq": 70.0},
    "scaling over parameters": {"rope_parameters": GEMMA3, "rope_scaling": YARN | ORIGINAL},
    "another base in scaling": {"rope_parameters": GEMMA3, "rope_scaling": {"rope_theta": 1e3, **LINEAR}},
    "attention_factor in full layers": {
        "rope_parameters": GEMMA3 | {"full_attention": YARN | {"attention_factor": 1.7}},
    },
}
GEMMA3_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "not of a type": ({"rope_parameters": {"rope_theta": 300.0}}, "rope_parameters.rope_theta"),
    "another name of the type": ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling.type"),
    "scaled sliding layers": (
        {"rope_parameters": GEMMA3 | {"sliding_attention": LINEAR}},
        "sliding_attention.rope_type",
    ),
    "local base twice": ({"rope_local_base_freq": 3.0, "rope_parameters": GEMMA3}, "rope_local_base_freq is 3.0 .*70"),
    "base null": ({"rope_theta": None}, "rope_theta"),
    "original context at the top": ({**ORIGINAL, "rope_scaling": YARN}, "original_max_position_embeddings is 16"),
}


DEEPSEEK_EQUAL = {name: way for name, way in EQUAL.items() if name.startswith(("yarn", "null", "empty", "theta at"))}
DEEPSEEK_REFUSED = {
    **{name: (EQUAL[name], "rope_type") for name in ("linear", "dynamic", "llama3", "longrope")},
    **{name: way for name, way in REFUSED.items() if name.startswith(("yarn", "theta", "original", "truncate"))},
}


def ways_that_are_equal(family: str) -> dict[str, dict[str, Any]]:
    """The ways of a family that give the reference's logits."""
    return {"Gemma3": GEMMA3_EQUAL, "DeepseekV3": DEEPSEEK_EQUAL}.get(family, EQUAL)


def ways_that_are_refused(family: str) -> dict[str, tuple[dict[str, Any], str]]:
    """The ways of a family that are refused."""
    return {"Gemma3": GEMMA3_REFUSED, "DeepseekV3": DEEPSEEK_REFUSED}.get(family, REFUSED)


Checkpoints = Callable[[str, dict[str, Any]], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """A function that gives a folder: a family's small model, whose `config.json` says these fields of RoPE."""
    made: dict[str, tuple[Path, dict[str, Any]]] = {}
    transformers.utils.logging.disable_progress_bar()

    def write(family: str, fields: dict[str, Any]) -> Path:
        if family not in made:
            reference_class, folder = getattr(transformers, f"{family}ForCausalLM"), tmp_path_factory.mktemp(family)
            without = ("head_dim",) if family in NO_HEAD_DIM else ()
            sizes = {name: size for name, size in (SIZES | FAMILIES[family]).items() if name not in without}
            perturb(reference_class(reference_class.config_class(**sizes)), 0.2).save_pretrained(folder)
            config_json = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            del config_json["rope_parameters"]
            made[family] = folder, config_json
        folder, config_json = made[family]
        (folder / "config.json").write_text(json.dumps(config_json | fields), encoding="utf-8")
        return folder

    return write


def load_reference(family: str, folder: Path) -> Any:
    """The reference's model of a folder."""
    reference_class = getattr(transformers, f"{family}ForCausalLM")
    reference = reference_class.from_pretrained(folder, attn_implementation="eager").eval()
    reference.config._experts_implementation = "eager"
    return reference


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of logits, relative to the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


DAILY = {
    "Llama": (
        "linear, old",
        "dynamic",
        "llama3, no original context",
        "yarn, original context at the top",
        "yarn, mscale",
        "longrope, no original context",
    ),
    "Gemma3": ("scaling over parameters",),
    "DeepseekV3": ("yarn",),
}
"""The ways for every day: each type of RoPE in Llama; in other families a file that says nothing, unless another."""


@pytest.mark.parametrize(
    ("family", "way"),
    [
        pytest.param(
            family, way, id=f"{family}: {way}", marks=() if way in DAILY.get(family, ("nothing",)) else pytest.mark.slow
        )
        for family in FAMILIES
        for way in ways_that_are_equal(family)
    ],
)
@torch.no_grad()
def test_a_way_to_say_it_gives_the_references_logits(
    family: str, way: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoint(family, ways_that_are_equal(family)[way])
    token_ids = torch.arange(48).reshape(1, 48)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(folder)
    assert len(caught) <= 1  # all that is ignored, once for each load
    ours, theirs = model(token_ids), load_reference(family, folder)(token_ids).logits
    assert difference(ours, theirs) <= FLOAT32_BAR

    model.save_pretrained(tmp_path)
    assert load_config(tmp_path)[1] == model.config
    assert torch.equal(load_reference(family, tmp_path)(token_ids).logits, theirs)


@pytest.mark.parametrize(
    ("family", "way"),
    [
        pytest.param(
            family, way, id=f"{family}: {way}", marks=() if family in ("Llama", "Gemma3") else pytest.mark.slow
        )
        for family in FAMILIES
        for way in ways_that_are_refused(family)
    ],
)
def test_a_way_that_is_refused_is_named(family: str, way: str, checkpoint: Checkpoints) -> None:
    fields, named = ways_that_are_refused(family)[way]
    with pytest.raises(CheckpointError, match=named) as refused:
        load_config(checkpoint(family, fields))
    assert "config.json" in str(refused.value)


@pytest.mark.parametrize("scaling", [DYNAMIC, LONGROPE | ORIGINAL], ids=["dynamic", "longrope"])
@pytest.mark.parametrize("family", ["Llama", pytest.param("Qwen3", marks=pytest.mark.slow)])
@torch.no_grad()
def test_frequencies_that_change_with_the_length_change_when_the_references_do(
    family: str, scaling: dict[str, Any], checkpoint: Checkpoints
) -> None:
    """Read whole, a text has the frequencies of its length; written token by token, each has those of its time."""
    folder = checkpoint(family, {"rope_parameters": scaling})
    model, border = load(folder), scaling.get("original_max_position_embeddings", 32)
    for length in (border - 1, border, border + 1, 48):
        token_ids = torch.arange(length).reshape(1, length)
        theirs = load_reference(family, folder)(token_ids).logits  # made anew, as it remembers the longest text
        assert difference(model(token_ids), theirs) <= FLOAT32_BAR

    prompt = torch.arange(1, border - 3).reshape(1, border - 4)
    written = load_reference(family, folder).generate(
        prompt, do_sample=False, max_new_tokens=12, output_logits=True, return_dict_in_generate=True, pad_token_id=0
    )
    cache = model.make_cache(48)
    steps = [model.decode_step(part, cache) for part in written.sequences[:, :-1].split([border - 4, *[1] * 11], dim=1)]
    assert difference(torch.cat(steps), torch.cat(written.logits)) <= FLOAT32_BAR
    whole = model(written.sequences[:, :-1])[:, -1]
    assert difference(steps[-1], whole) > 10 * FLOAT32_BAR  # keys in the cache keep the frequencies they were given


def test_a_field_that_the_reference_does_not_have_is_said_once_and_without_a_falsehood(checkpoint: Checkpoints) -> None:
    fields = {"flash_dance": 3, "nothing": None, "rope_parameters": YARN | {"low_freq_factor": 2.0, "finetuned": True}}
    folder = checkpoint("Llama", fields)
    with pytest.warns(UserWarning, match="flash_dance") as caught:
        load(folder)
    (warning,) = caught
    said = str(warning.message)
    assert "flash_dance, which no llama configuration has in the reference" in said
    assert "rope_parameters.finetuned, which no llama configuration has in the reference" in said
    assert "rope_parameters.low_freq_factor, without effect where rope_type is 'yarn'" in said
    assert "nothing" not in said


@pytest.mark.parametrize(("names", "agree"), [((96, 96), True), ((96, 48), False), ((96, None), True)])
def test_two_names_of_a_field_have_to_agree(names: tuple[int, int], agree: bool) -> None:
    fields = {"model_type": "gpt2", "n_embd": names[0], "hidden_size": names[1]}
    if agree:
        assert read_config(GPT2_FORMAT, fields).embedding_dim == 96
    else:
        with pytest.raises(CheckpointError, match="hidden_size is 48 but n_embd is 96"):
            read_config(GPT2_FORMAT, fields)


def test_null_is_no_default_but_where_the_reference_takes_it_for_one() -> None:
    assert read_config(GPT2_FORMAT, {"model_type": "gpt2", "n_inner": None}).mlp_dim == 4 * 768
    with pytest.raises(CheckpointError, match=r"not None \(n_layer\)"):
        read_config(GPT2_FORMAT, {"model_type": "gpt2", "n_layer": None})


def test_a_name_with_a_dot_is_not_taken_for_a_nested_field() -> None:
    with pytest.warns(UserWarning, match=r"rope_parameters\.rope_theta, which no llama"):
        config = read_config(LLAMA_FORMAT, {"model_type": "llama", "rope_parameters.rope_theta": 5.0})
    assert config.rope_theta == 10000.0
