"""Each field of `config.json`, family by family: our logits are the reference's, or the field is refused by name.

The fields are those of the reference's configuration class, what it writes, and what it reads besides. Each is set to
values that are not its default, left out, and set to null; the reference then builds a small model from that very
file, every parameter of it is perturbed, and both models read the same text, which is longer than every window.
"""

import collections
import copy
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import allformers
from allformers.checkpoints import CheckpointError
from allformers.checkpoints.loading import empty_model
from allformers.checkpoints.tables import Format
from allformers.models.registry import READING_ORDER, load_config
from conftest import RECORDS, SWEPT, perturb

BAR = 5e-6
SEQ = 17
LARGEST = 2_000_000
"""Where the reference's model would have more parameters, only the two configurations are compared."""

OUTCOMES = ("equal", "refused", "ours alone")
"""Our logits are the reference's; the field is refused by name; the file says nothing, and the reference refuses it."""

ABSENT = object()
"""Stands for a field that is left out."""

LLAMA: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "sliding_window": 5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


FILES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 67,
        "n_positions": 32,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 20,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "llama": without(LLAMA, "sliding_window"),
    "mistral": LLAMA,
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": without(LLAMA, "head_dim"),
    "qwen3": LLAMA,
    "gemma": without(LLAMA, "sliding_window"),
    "gemma2": {**LLAMA, "query_pre_attn_scalar": 8},
    "gemma3_text": {**LLAMA, "query_pre_attn_scalar": 24, "num_hidden_layers": 7},
    "bert": {
        "vocab_size": 67,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
    },
    "vit": {
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "label2id": {"a": 0, "b": 1, "c": 2},
    },
    "deepseek_v3": {
        **without(LLAMA, "sliding_window", "head_dim"),
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 12,
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 14,
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
}
"""A small `config.json` of each family, by `model_type`."""

ACTIVATIONS = ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "silu", "swish", "tanh", "?"]
TOKEN_IDS = [None, 2, 66]
DROPOUTS = [0, 0.0, 0.1, 0.3, 1.0, -0.1]

VALUES: dict[str, list[Any]] = {
    "_name_or_path": ["somebody/something"],
    "activation_function": ACTIVATIONS,
    "architectures": [["SomethingElse"], []],
    "bos_token_id": TOKEN_IDS,
    "chunk_size_feed_forward": [1],
    "dtype": ["float16", "bfloat16"],
    "eos_token_id": [*TOKEN_IDS, [1, 2]],
    "hidden_act": ACTIVATIONS,
    "hidden_activation": ACTIVATIONS,
    "id2label": [{"0": "one"}, {str(label): f"label {label}" for label in range(5)}],
    "is_causal": [False, True],
    "label2id": [{"one": 0}],
    "layer_types": [
        LAYERS,
        LAYERS[:2],
        ["full_attention"] * 3,
        ["sliding_attention"] * 3,
        ["full_attention"] * 7,
        ["sliding_attention", "full_attention"] * 3 + ["full_attention"],
        ["chunked_attention"] * 3,
    ],
    "initializer_range": [0.05],
    "max_window_layers": [0, 1, 28],
    "n_inner": [None, 31],
    "num_labels": [1, 5],
    "pad_token_id": TOKEN_IDS,
    "per_layer_config": [{}, {"1": {"intermediate_size": 28}}],
    "problem_type": ["regression", "single_label_classification"],
    "q_lora_rank": [None, 9],
    "query_pre_attn_scalar": [1, 13, 144, 0],
    "sliding_window": [None, 1, 3, 64, 0],
    "_sliding_window_pattern": [2, 3],
    "sliding_window_pattern": [2, 3, 1],
    "summary_activation": ["tanh"],
    "summary_type": ["last"],
    "v_head_dim": [9, 4, 12],
    "attn_logit_softcapping": [None, 1.5, 50.0, 0, 0.0],
    "final_logit_softcapping": [None, 2.0, 30.0, 0, 0.0],
    "vocab_size": [71],
    "torch_dtype": ["float16"],
    "transformers_version": ["4.1.0"],
    "type_vocab_size": [1, 3],
    "n_positions": [20],
    "max_position_embeddings": [20, 64],
    "image_size": [20, [16, 16], [16, 24]],
    "patch_size": [8, [4, 4], [4, 8]],
    "num_channels": [1, 4],
    "first_k_dense_replace": [0, 2, 5],
    "n_group": [1, 4],
    "topk_group": [2],
    "num_experts_per_tok": [1, 4],
    "n_shared_experts": [2, 0],
    "hidden_size": [36, 26],
    "n_embd": [36, 26],
    "num_attention_heads": [2, 6, 5],
    "n_head": [2, 6, 5],
    "num_key_value_heads": [1, 4, 3],
    "head_dim": [6, 10, 4, 7],
    "qk_rope_head_dim": [6, 2, 5],
    "qk_nope_head_dim": [5],
    "kv_lora_rank": [7],
    "num_hidden_layers": [1, 4],
    "n_layer": [1, 4],
    "num_local_experts": [2, 5],
    "num_experts": [2, 5],
    "n_routed_experts": [4, 12],
    "rope_theta": [500.0],
    "rope_local_base_freq": [500.0],
    "rope_scaling": [{"rope_type": "linear", "factor": 4.0}, {"type": "linear", "factor": 2.0}],
    "rope_parameters": [
        {},
        {"rope_theta": 500.0},
        {"rope_theta": 500.0, "rope_type": "default"},
        {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0},
        {"rope_theta": 500.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
        {"rope_theta": 500.0, "rope_type": "yarn", "factor": 4.0},
        {"rope_theta": 500.0, "rope_type": "dynamic", "factor": 4.0},
        {
            "full_attention": {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0},
            "sliding_attention": {"rope_theta": 100.0, "rope_type": "default"},
        },
    ],
    "original_max_position_embeddings": [8],
    "partial_rotary_factor": [0.5],
    "n_ctx": [20],
    "moe_layer_freq": [1, 2],
    "scoring_func": ["sigmoid", "softmax"],
    "topk_method": ["noaux_tc", "greedy"],
    "position_embedding_type": ["absolute", "relative_key"],
}
"""Values of fields by name. Of other fields they follow from the type of the default."""

ALSO_READ: dict[str, tuple[str, ...]] = {
    "gpt2": ("n_ctx", "is_causal"),
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "deepseek_v3"),
        ("is_causal", "rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings"),
    ),
    "bert": ("position_embedding_type",),
    "vit": ("head_dim",),
}
ALSO_READ["mistral"] += ("layer_types",)
ALSO_READ["qwen2"] += ("head_dim",)
ALSO_READ["gemma"] += ("hidden_activation",)
ALSO_READ["gemma3_text"] += ("sliding_window_pattern", "rope_local_base_freq")
ALSO_READ["deepseek_v3"] += ("moe_layer_freq", "scoring_func", "topk_method")
EVERYWHERE = ("num_labels", "torch_dtype", "per_layer_config")
"""What the reference reads of a file, though its configuration classes do not declare it."""

TOGETHER: dict[str, list[dict[str, Any]]] = {
    "gpt2": [
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        {"scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu"},
        {"hidden_size": 36, "n_embd": ABSENT},
        {"num_attention_heads": 2, "n_head": ABSENT},
    ],
    "mistral": [
        {"layer_types": LAYERS, "sliding_window": None},
        {"layer_types": LAYERS, "sliding_window": 3},
        {"layer_types": LAYERS, "rope_theta": 500.0},
    ],
    "mixtral": [{"num_experts": 2, "num_local_experts": ABSENT}],
    "qwen2": [{"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}],
    "qwen3": [{"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}],
    "gemma": [
        {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu", "hidden_activation": "gelu"},
        {"hidden_act": "relu", "hidden_activation": "relu"},
        {"hidden_act": "silu", "hidden_activation": None},
        {"hidden_act": ABSENT, "hidden_activation": "silu"},
    ],
    "gemma2": [{"hidden_act": "gelu", "hidden_activation": "relu"}],
    "gemma3_text": [
        {"sliding_window_pattern": 3, "layer_types": ["full_attention"] * 7},
        {"sliding_window_pattern": 3, "layer_types": None},
    ],
    "vit": [{"num_labels": 5, "id2label": ABSENT}, {"num_labels": 3, "id2label": None}],
    "deepseek_v3": [
        {"num_local_experts": 4, "n_routed_experts": ABSENT},
        {"q_lora_rank": None, "attention_bias": True},
        {"head_dim": 6, "qk_rope_head_dim": 6},
    ],
}
"""Fields that mean something together."""


class Case(NamedTuple):
    """A `config.json`: a family's small one, with some fields changed."""

    family: str
    changes: dict[str, Any]

    def __str__(self) -> str:
        said = {name: "absent" if value is ABSENT else json.dumps(value) for name, value in self.changes.items()}
        return f"{self.family}: {', '.join(f'{name} {value}' for name, value in said.items())}"

    @property
    def described(self) -> dict[str, Any]:
        """The contents of the file."""
        fields = {"model_type": self.family, **FILES[self.family], **self.changes}
        return {name: copy.deepcopy(value) for name, value in fields.items() if value is not ABSENT}

    @property
    def names(self) -> set[str]:
        """The changed fields, under all their names."""
        aliases = CONFIG_MAPPING[self.family].attribute_map
        return {*self.changes, *(aliases[name] for name in self.changes if name in aliases)}


def fields_of(family: str) -> list[str]:
    """The fields of `config.json` that the reference reads for a family."""
    config_class = CONFIG_MAPPING[family]
    declared = [field.name for field in dataclasses.fields(config_class)]
    names = [*declared, *config_class().to_dict(), *config_class.attribute_map]
    return sorted({*names, *ALSO_READ[family], *EVERYWHERE} - {"model_type"})


def values_of(family: str, field: str) -> list[Any]:
    """Values that are not the default, then null, then none at all."""
    config_class = CONFIG_MAPPING[family]
    field = config_class.attribute_map.get(field, field) if field not in VALUES else field
    default = config_class().to_dict().get(field)
    usual = FILES[family].get(field, default)
    if field in VALUES:
        found = VALUES[field]
    elif "drop" in field:
        found = DROPOUTS
    elif isinstance(usual, bool):
        found = [not usual]
    elif isinstance(usual, int):
        found = [usual + 1, 2 * usual + 1]
    elif isinstance(usual, float):
        found = [3 * usual + 0.01, 1.0]
    else:
        found = [1, "something"]
    return [*(value for value in found if value is not None and repr(value) != repr(default)), None, ABSENT]


def cases_of(family: str) -> Iterator[Case]:
    for field in fields_of(family):
        for value in values_of(family, field):
            yield Case(family, {field: value})
    for changes in TOGETHER.get(family, []):
        yield Case(family, changes)


# -- The two sides -----------------------------------------------------------------------------------------------------


def build_reference(config: Any) -> Any:
    """The reference's model of a configuration."""
    head = {"bert": "MaskedLM", "vit": "ImageClassification"}.get(config.model_type, "CausalLM")
    auto_class = getattr(transformers, f"AutoModelFor{head}")
    config = copy.deepcopy(config)
    config._experts_implementation = "eager"
    return auto_class.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()


def make_input(config: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if config.model_type != "vit":
        return torch.randint(config.vocab_size, (2, SEQ), generator=generator)
    size = config.image_size if isinstance(config.image_size, list) else [config.image_size] * 2
    return torch.randn(2, config.num_channels, *size, generator=generator)


class Reference(NamedTuple):
    """What the reference makes of a file: its configuration, an input, and the logits, where the model is small."""

    config: Any
    x: Tensor | None = None
    logits: Tensor | None = None


def ask_reference(case: Case, folder: Path) -> Reference | None:
    """Have the reference read the file, build a model with every parameter perturbed, and save it there.

    None where it cannot, whatever it raises.
    """
    folder.mkdir(exist_ok=True)
    described = json.dumps(case.described)
    (folder / "config.json").write_text(described)
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in build_reference(config).parameters())
        if size > LARGEST:
            return Reference(config)
        torch.manual_seed(0)
        model = perturb(build_reference(config))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # learned, though by no gradient
                buffer.add_(torch.randn_like(buffer) * 0.2)
        x = make_input(config)
        with torch.no_grad():
            logits = model(x, return_dict=True).logits
        model.save_pretrained(folder)
    except Exception:
        return None
    finally:
        (folder / "config.json").write_text(described)
    return Reference(config, x, logits)


def ask_ours(action: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What loading gives, or the error that refuses it; and what was remarked."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = action()
        except CheckpointError as error:
            found = error
    return found, sorted({str(one.message) for one in caught if issubclass(one.category, UserWarning)})


def outcome(case: Case, folder: Path) -> str:
    """Compare the two on one file: "equal", "refused", "ours alone" (not the reference), or what is wrong."""
    theirs = ask_reference(case, folder)
    small = theirs is not None and theirs.logits is not None
    found, remarks = ask_ours(lambda: allformers.load(folder) if small else load_config(folder))
    if isinstance(found, CheckpointError):
        named = any(name in str(found) for name in case.names)
        return "refused" if named or theirs is None else f"refused without the name: {found}"
    if len(remarks) > 1 or not all(any(name in remark for name in case.names) for remark in remarks):
        return f"remarks: {remarks}"
    if theirs is None:
        return "ours alone" if says_nothing(case) else "taken, though the reference refuses it"
    if theirs.logits is None or theirs.x is None:
        return written_out(case, theirs.config, *found, folder)
    with torch.no_grad():
        ours = found(theirs.x)
    if ours.shape != theirs.logits.shape:
        return f"logits of shape {tuple(ours.shape)}, and the reference's {tuple(theirs.logits.shape)}"
    difference = float((ours - theirs.logits).abs().max() / theirs.logits.abs().max())
    if difference > BAR:
        return f"logits differ by {difference:.1e}"
    return written_out(case, theirs.config, type(found), found.config, folder)


def written_out(case: Case, theirs: Any, model_class: Any, config: Any, folder: Path) -> str:
    """Compare our configuration with that of the file in which the reference has written out its own."""
    (folder / "config.json").write_text(json.dumps({**theirs.to_dict(), "model_type": case.family}))
    again, _ = ask_ours(lambda: load_config(folder))
    same = not isinstance(again, CheckpointError) and settled(model_class, config) == settled(*again)
    return "equal" if same else f"another configuration: {config} and, all written out, {again}"


def format_of(family: str) -> Format:
    return next(entry.load().checkpoint_format() for entry in READING_ORDER if entry.model_type == family)


def says_nothing(case: Case) -> bool:
    """True if the changes are nothing that could be guessed wrong: null, absence, or a field with no part here."""
    form = format_of(case.family)
    silent = {*form.ignored_fields, *form.aliases, *form.unsupported_fields}
    silent |= {field.theirs for field in form.fields if field.null_is_missing}
    return all(
        value is ABSENT or name in form.ignored_fields or (value is None and name in silent) or name in LENIENT
        for name, value in case.changes.items()
    )


LENIENT = {"hidden_size", "layer_types"}
"""Here `hidden_size` needs no divisor where `head_dim` stands, and a list of layers that are all alike no length."""


def settled(model_class: Any, config: Any) -> Any:
    """A configuration whose layers' types are written out."""
    if getattr(config, "layer_types", ()) is None:
        return dataclasses.replace(config, layer_types=empty_model(model_class, config).layer_types())
    return config


# -- What is held ------------------------------------------------------------------------------------------------------

DAILY: dict[str, list[dict[str, Any]]] = {
    "gpt2": [{"attn_pdrop": 0.0}, {"is_causal": False}],
    "llama": [{"is_causal": False}, {"hidden_act": "swish"}],
    "mistral": [{"layer_types": LAYERS}, {"sliding_window": ABSENT}],
    "mixtral": [{"rms_norm_eps": ABSENT}, {"per_layer_config": {"1": {"intermediate_size": 28}}}],
    "qwen2": [{"layer_types": LAYERS}, {"layer_types": ["full_attention"] * 3}],
    "qwen3": [{"use_sliding_window": True}, {"num_key_value_heads": ABSENT}],
    "gemma": [{"use_bidirectional_attention": False}, {"hidden_act": "gelu"}],
    "gemma2": [{"attn_logit_softcapping": ABSENT}, {"final_logit_softcapping": None}],
    "gemma3_text": [{"sliding_window_pattern": 3}, {"use_bidirectional_attention": True}],
    "bert": [{"attention_probs_dropout_prob": 0.3}, {"is_decoder": True}],
    "vit": [{"head_dim": 10}, {"num_labels": 5, "id2label": ABSENT}],
    "deepseek_v3": [{"v_head_dim": 9}, {"q_lora_rank": None}],
}
"""For plain pytest: of each family, what it would be easiest to get wrong."""


@pytest.fixture(autouse=True)
def _quiet_reference() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("family", FILES)
def test_what_is_easily_wrong(family: str, tmp_path: Path) -> None:
    for number, changes in enumerate(DAILY[family]):
        case = Case(family, changes)
        assert (str(case), outcome(case, tmp_path / str(number))) in [(str(case), "equal"), (str(case), "refused")]


@pytest.mark.parametrize("family", FILES)
def test_every_field_of_the_reference_stands_in_the_table(family: str) -> None:
    form = format_of(family)
    known = {field.theirs for field in form.fields} | {*form.objects, *form.aliases}
    known |= {*form.ignored_fields, *form.unsupported_fields} | {"layer_types"}  # Mistral's variant reads it
    assert set(fields_of(family)) - known == set()


def test_every_family_was_swept_and_recorded() -> None:
    recorded = json.loads((RECORDS / "config-sweep.json").read_text(encoding="utf-8"))["rows"]
    assert [row["family"] for row in recorded] == list(FILES) == [entry.model_type for entry in READING_ORDER]
    assert all(row["files"] == row["equal"] + row["refused"] + row["ours alone"] for row in recorded)


@pytest.mark.slow
@pytest.mark.parametrize("family", FILES)
def test_every_field_with_every_value(family: str, tmp_path: Path) -> None:
    found = [(str(case), outcome(case, tmp_path / str(number))) for number, case in enumerate(cases_of(family))]
    assert [(case, one) for case, one in found if one not in OUTCOMES] == []
    counts = collections.Counter(one for _, one in found)
    swept = {"family": family, "fields": len(fields_of(family)), "files": len(found)}
    SWEPT.append(swept | {one: counts[one] for one in OUTCOMES})
