"""Every model that descends from Llama, and Llama, equals the reference: logits, greedy tokens, caches, files.

Each case is one setting of the reference's configuration that released checkpoints use. Every parameter is perturbed,
and the last test shows that mistakes which really happen would be noticed. One case of each model is for every day;
all cases, at full length, are slow.
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from einops import rearrange
from torch import Tensor, nn

from allformers.inspection import summarise, trace
from allformers.models.mistral.variants import Ministral
from allformers.models.mixtral.mixtral import MixtureOfExperts
from allformers.models.registry import READING_ORDER, load
from allformers.nn.masks import causal_mask
from allformers.speed import compile_steps, prepare
from allformers.speed import linear as linear_module
from conftest import close_enough, perturb, true_float64

FLOAT32_BAR = 5e-6
FLOAT64_BAR = 1e-10

SIZES = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 53,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 14,
    "max_position_embeddings": 160,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""No two axes of one size, and heads that together are wider than the stream."""

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PER_TYPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
DEEPSEEK = {
    "head_dim": None,
    "num_key_value_heads": 6,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_routed_experts": 12,
    "n_shared_experts": 3,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 22,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
}
YARN_FIELDS = {"rope_type": "yarn", "rope_factor": 40.0, "original_context_length": 64}
PLAIN_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16}
"""As published for Qwen2.5 and Qwen3, but for the context, which is short enough for all tests to go past it."""

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "Llama", {}),
    ("llama", "Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", "Llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
    ("llama", "Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    ("llama", "Llama", {"num_key_value_heads": 6}),
    ("llama", "Llama", {"num_key_value_heads": 1, "head_dim": 6}),
    ("mistral", "Mistral", {"sliding_window": 7}),
    ("mistral", "Mistral", {"sliding_window": 2}),
    ("mistral", "Mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    ("mixtral", "Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    ("mixtral", "Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 9}),
    ("mixtral", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 1}),
    ("qwen2", "Qwen2", {"head_dim": None}),
    ("qwen2", "Qwen2", {"head_dim": None, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}}),
    ("qwen3", "Qwen3", {}),
    ("qwen3", "Qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    ("gemma", "Gemma", {}),
    ("gemma", "Gemma", {"num_key_value_heads": 1, "hidden_act": "gelu"}),
    ("gemma", "Gemma", {"attention_bias": True, "tie_word_embeddings": False}),
    ("gemma2", "Gemma2", {"query_pre_attn_scalar": 18, "sliding_window": 7, "tie_word_embeddings": False}),
    (
        "gemma2",
        "Gemma2",
        {"sliding_window": 5, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0, "attention_bias": True},
    ),
    ("gemma2", "Gemma2", {"sliding_window": 5, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    (
        "gemma3",
        "Gemma3",
        {
            "num_hidden_layers": 8,
            "query_pre_attn_scalar": 18,
            "sliding_window": 7,
            "rope_parameters": PER_TYPE,
            "tie_word_embeddings": False,
        },
    ),
    (
        "gemma3",
        "Gemma3",
        {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ),
    ("deepseek-v3", "DeepseekV3", DEEPSEEK),
    ("deepseek-v3", "DeepseekV3", DEEPSEEK | {"attention_bias": True, "rope_parameters": YARN}),
    (
        "deepseek-v3",
        "DeepseekV3",
        DEEPSEEK
        | {"q_lora_rank": None, "norm_topk_prob": False, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1},
    ),
    ("llama", "Llama", {"rope_parameters": PLAIN_YARN | {"beta_fast": 4.0, "beta_slow": 0.5}}),
    ("mistral", "Mistral", {"rope_parameters": PLAIN_YARN, "sliding_window": None}),
    ("qwen2", "Qwen2", {"rope_parameters": PLAIN_YARN, "head_dim": None}),
    ("qwen3", "Qwen3", {"rope_parameters": PLAIN_YARN}),
]
IDS = [f"{name}-{number}" for number, (name, _, _) in enumerate(CASES)]

DAILY = (
    "llama-2 mistral-6 mixtral-9 qwen2-13 qwen3-15 gemma-17 gemma2-20 gemma3-23 deepseek-v3-25".split()  # noqa: SIM905
)
"""One case of each model, with what is odd about it, for plain pytest."""

daily = pytest.mark.parametrize("case", DAILY)
every = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in DAILY else pytest.mark.slow) for case in IDS]
)


@pytest.fixture(autouse=True)
def _quiet_reference() -> None:
    transformers.utils.logging.disable_progress_bar()


def make_reference(family: str, fields: dict[str, Any], std: float = 0.2) -> Any:
    """A reference with every parameter perturbed, that never stops early."""
    chosen = {k: v for k, v in (SIZES | fields).items() if not (k == "head_dim" and v is None)}
    suffix = "TextConfig" if family == "Gemma3" else "Config"
    config = getattr(transformers, family + suffix)(**chosen)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    reference = perturb(getattr(transformers, f"{family}ForCausalLM")(config).eval(), std)
    for name, buffer in reference.named_buffers():
        if name.endswith("e_score_correction_bias"):  # learned, though by no gradient
            buffer.add_(torch.randn_like(buffer) * std)
    return reference


def make_case(case: str, std: float = 0.2) -> Any:
    """The reference of a case, called by its name."""
    _, family, fields = CASES[IDS.index(case)]
    return make_reference(family, fields, std)


def prompt(seq: int = 40) -> Tensor:
    return torch.randint(97, (2, seq))


@torch.no_grad()
def difference(ours: Any, theirs: Tensor, token_ids: Tensor) -> float:
    """The largest difference of two models' logits, relative to the largest logit."""
    return float((ours(token_ids).double() - theirs.double()).abs().max() / theirs.double().abs().max())


@torch.no_grad()
def other_choices(ours: Any, reference: Any, token_ids: Tensor) -> list[str]:
    """Where our routers pick other experts than the reference's, in words; nothing for a model without experts.

    Looked at before logits: one token that goes to another expert changes all that follows, and where two experts fit
    nearly as well, rounding may decide between them. Then that is what a failure should say.
    """
    picked: list[Tensor] = []
    theirs: list[tuple[Tensor, Tensor]] = []
    experts = [module for module in ours.modules() if isinstance(module, MixtureOfExperts)]
    for module in experts:

        def route(tokens: Tensor, module: Any = module) -> tuple[Tensor, Tensor]:
            weights, expert_ids = type(module).route(module, tokens)
            picked.append(expert_ids.sort(dim=-1).values)
            return weights, expert_ids

        module.route = route
    routers = [module for module in reference.modules() if type(module).__name__.lower().endswith("topkrouter")]
    hooks = [
        router.register_forward_hook(lambda _, __, given: theirs.append((given[0], given[2].sort(dim=-1).values)))
        for router in routers
    ]
    ours(token_ids)
    reference(token_ids)
    for hook in hooks:
        hook.remove()
    for module in experts:
        del module.route
    found = []
    for layer, (chosen, (scores, expected)) in enumerate(zip(picked, theirs, strict=True)):
        for token in (chosen != expected).any(-1).nonzero().flatten().tolist():
            one, other = set(chosen[token].tolist()), set(expected[token].tolist())
            gap = scores[token, sorted(other - one)].min() - scores[token, sorted(one - other)].max()
            found.append(
                f"router {layer} sends token {token} to {sorted(one)}, the reference's to {sorted(other)}: by its "
                f"scores they lie {gap:.1e} apart"
            )
    return found


@daily
def test_logits_greedy_tokens_and_files(case: str, tmp_path: Path) -> None:
    reference, token_ids = make_case(case), prompt()
    ours, _ = assert_equal(case, reference, token_ids, tmp_path)
    assert_same_text(ours, reference, token_ids, 24)
    assert_there_and_back(ours, reference, token_ids, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", IDS)
def test_every_setting(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "MIN_WEIGHTS", 0)  # so that small layers, too, go the way that large ones go
    reference, token_ids = make_case(case), prompt()
    ours, logits = assert_equal(case, reference, token_ids, tmp_path)

    # 100 greedy tokens with the cache: past every window, and back to the reference's own.
    theirs = assert_same_text(ours, reference, token_ids, 100)
    if not ours.config.tie_embeddings:  # tied and perturbed, a model mostly repeats itself, and proves little by that
        assert len(set(theirs[:, 40:].flatten().tolist())) > 5

    # Prepared for inference; a single row goes another way then than several.
    prepared = prepare(load(tmp_path / "theirs"), "packed")
    found = difference(prepared, logits, token_ids)
    name = CASES[IDS.index(case)][0]
    assert close_enough("prepared for inference", "logits", torch.float32, found, FLOAT32_BAR, name)
    one_row = prepared.generate(token_ids[:1], max_new_tokens=100, temperature=0)
    assert one_row.tolist() == theirs[:1].tolist()
    assert_there_and_back(ours, reference, token_ids, tmp_path)


def assert_equal(case: str, reference: Any, token_ids: Tensor, folder: Path) -> tuple[Any, Tensor]:
    """Our model, loaded from the reference's files, gives its logits; in float64 exactly, and not nearly."""
    name, family, _ = CASES[IDS.index(case)]
    reference.save_pretrained(folder / "theirs")
    ours = load(folder / "theirs")
    assert type(ours).__name__.lower() == family.lower()
    assert other_choices(ours, reference, token_ids) == []
    with torch.no_grad():
        logits = reference(token_ids).logits
    found = difference(ours, logits, token_ids)
    assert close_enough("every setting", "logits", torch.float32, found, FLOAT32_BAR, name)

    with true_float64():  # or the reference would cast to float32
        twin = type(reference)(copy.deepcopy(reference.config)).eval()
        twin.load_state_dict(reference.state_dict())
        exact = twin(token_ids).logits.detach()
    assert exact.dtype == torch.float64
    found = difference(type(ours).from_pretrained(folder / "theirs", dtype=torch.float64), exact, token_ids)
    assert close_enough("every setting", "logits", torch.float64, found, FLOAT64_BAR, name)
    return ours, logits


def assert_same_text(ours: Any, reference: Any, token_ids: Tensor, length: int) -> Tensor:
    """Both write the same greedy tokens."""
    seen = torch.ones_like(token_ids)
    theirs = reference.generate(token_ids, attention_mask=seen, do_sample=False, max_new_tokens=length, pad_token_id=0)
    written = ours.generate(token_ids, max_new_tokens=length, temperature=0)
    assert written.tolist() == theirs.tolist()
    return written


def assert_there_and_back(ours: Any, reference: Any, token_ids: Tensor, folder: Path) -> None:
    """From what we save the reference loads what it was; and from a live reference we copy what we load."""
    ours.save_pretrained(folder / "ours")
    again = type(reference).from_pretrained(folder / "ours", attn_implementation="eager").eval()
    again.config._experts_implementation = "eager"
    with torch.no_grad():
        assert torch.equal(again(token_ids).logits, reference(token_ids).logits)
    assert {k: v.tolist() for k, v in again.state_dict().items()} == {
        k: v.tolist() for k, v in reference.state_dict().items()
    }
    live = type(ours).from_huggingface(reference)
    with torch.no_grad():
        assert torch.equal(live(token_ids), ours(token_ids))


FIRST = {name: (name, family, fields) for name, family, fields in reversed(CASES)}


@pytest.mark.slow  # compiling takes more than ten seconds each
@pytest.mark.parametrize(("name", "family", "fields"), FIRST.values())
def test_compiled_steps(name: str, family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    reference, token_ids = make_reference(family, fields), prompt()[:1]
    reference.save_pretrained(tmp_path)
    compiled = compile_steps(load(tmp_path))
    with torch.inference_mode():
        cache, logits = compiled.make_cache(), reference(token_ids).logits
        steps = torch.stack([compiled.decode_step(token, cache) for token in token_ids.split(1, dim=1)], dim=1)
    found = ((steps - logits).abs().max() / logits.abs().max()).item()
    assert close_enough("compiled steps", "logits", torch.float32, found, FLOAT32_BAR, name)
    seen = torch.ones_like(token_ids)
    theirs = reference.generate(token_ids, attention_mask=seen, do_sample=False, max_new_tokens=100, pad_token_id=0)
    assert compiled.generate(token_ids, max_new_tokens=100, temperature=0).tolist() == theirs.tolist()


@every
def test_the_cache_changes_nothing(case: str, tmp_path: Path) -> None:
    make_case(case).save_pretrained(tmp_path)
    model, token_ids = load(tmp_path), prompt()
    with torch.no_grad():
        whole, cache, start, parts = model(token_ids), model.make_cache(), 0, []
        for length in (5, 1, 1, 20, 1, 12):
            parts.append(model(token_ids[:, start : start + length], cache=cache))
            start += length
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=5e-5, rtol=1e-4)
    rows = [token_ids[0, :11].tolist(), token_ids[1].tolist(), token_ids[0, :3].tolist()]
    together = model.generate_batch(rows, max_new_tokens=12, temperature=0)
    for row, written in zip(rows, together, strict=True):
        alone = model.generate(torch.tensor([row]), max_new_tokens=12, temperature=0)[0]
        assert written.tolist() == alone.tolist()


def test_a_window_bounds_the_cache_and_a_failed_pass_leaves_it_as_it_was(tmp_path: Path) -> None:
    make_reference("Mistral", {"sliding_window": 7}).save_pretrained(tmp_path)
    model, token_ids = load(tmp_path), prompt(60)
    with torch.no_grad():
        cache = model.make_cache()
        model(token_ids[:, :30], cache=cache)
        sizes = []
        for place in range(30, 50):
            model(token_ids[:, place : place + 1], cache=cache)
            sizes.append(cache.nbytes)
        assert all(buffer.shape[-2] == 9 for layer in cache.layers for buffer in layer.buffers)  # a quarter more
        assert len(set(sizes)) == 1
        whole, model.blocks[-1].mlp_norm = model.blocks[-1].mlp_norm, nn.LayerNorm(5)  # fails in the last layer
        with pytest.raises(RuntimeError, match="normalized_shape"):
            model(token_ids[:, 50:51], cache=cache)
        model.blocks[-1].mlp_norm = whole
        assert cache.length == 50
        last = model(token_ids[:, 50:51], cache=cache)[:, -1]
        torch.testing.assert_close(last, model(token_ids[:, :51])[:, -1], atol=5e-5, rtol=1e-4)


@every
def test_no_position_sees_a_later_one_and_every_parameter_gets_a_gradient(case: str, tmp_path: Path) -> None:
    make_case(case).save_pretrained(tmp_path)
    model, token_ids = load(tmp_path), prompt(12)
    other = token_ids.clone()
    other[:, 8] = (other[:, 8] + 1) % 97
    with torch.no_grad():
        before, after = model(token_ids), model(other)
    torch.testing.assert_close(after[:, :8], before[:, :8], atol=1e-5, rtol=1e-5)
    assert not torch.equal(after[:, 8:], before[:, 8:])
    model(token_ids).square().mean().backward()
    for path, parameter in model.named_parameters():
        if path.endswith(".expert_bias"):  # which no gradient moves
            continue
        assert parameter.grad is not None, path
        assert bool(parameter.grad.abs().sum() > 0) or "mlp" in path, path  # an expert may be chosen by no token


DAILY = {"llama", "gemma3", "bert", "vit", "deepseek-v3"}
"""Those that are written in full, or have the most fields; the others inherit from them."""


@pytest.mark.parametrize(
    "entry",
    [pytest.param(one, id=one.name, marks=() if one.name in DAILY else pytest.mark.slow) for one in READING_ORDER[1:]],
)
def test_every_field_of_a_configuration_matters(entry: Any) -> None:
    """Changing it changes the weights' shapes, the logits, or is an error."""
    model_class = entry.load()
    tiny = model_class.checkpoint_format().config_class.tiny()
    scaled = "yarn" if entry.name == "deepseek-v3" else "linear"
    yarn = YARN_FIELDS | {"beta_fast": 4.0}
    pairs = tiny.rope_dim // 2 if hasattr(tiny, "rope_dim") else 0
    longrope = {"rope_type": "longrope", "original_context_length": 30, "attention_factor": None}
    longrope |= {"short_factor": (1.0,) * pairs, "long_factor": (2.0,) * pairs}
    changed = {
        "activation": "relu",
        "norm_eps": 0.1,
        "beta_fast": 1000.0,
        "original_context_length": 100_000,
        "rope_type": scaled,
        "layer_types": ("full_attention",) * tiny.num_layers,
        "short_factor": (3.0,) * pairs,
        "long_factor": (3.0,) * pairs,
    }
    only_with = {
        **dict.fromkeys(("rope_factor", "beta_slow", "truncate", "attention_factor"), yarn),
        **dict.fromkeys(("mscale", "mscale_all_dim"), yarn | {"mscale": 1.5, "mscale_all_dim": 1.0}),
        "beta_fast": yarn | {"original_context_length": 4096, "beta_fast": 32.0},
        "short_factor": longrope | {"original_context_length": 100},
        "long_factor": longrope,
        "low_freq_factor": {"rope_type": "llama3", "rope_factor": 8.0, "original_context_length": 64},
        "high_freq_factor": {"rope_type": "llama3", "rope_factor": 8.0, "original_context_length": 64},
        "original_context_length": {"rope_type": "llama3", "rope_factor": 8.0, "original_context_length": 64},
        "rope_type": yarn | {"rope_type": "default"},
    }
    without = set()
    if scaled == "yarn":  # the only kind there is beside the default
        only_with |= {"original_context_length": yarn}
        without = {"low_freq_factor", "high_freq_factor", "short_factor", "long_factor"}
    given = model_class(tiny).dummy_input(1, 60, "cpu")
    given = torch.randn_like(given) if given.is_floating_point() else torch.randint(256, given.shape)
    for field in dataclasses.fields(tiny):
        if field.name in {"context_length", "dropout"} | without:  # what it was trained for; in training only
            continue
        if field.name in {"num_heads", "num_kv_heads"} and not hasattr(tiny, "num_kv_heads"):
            continue  # the same weights, cut into other heads: held by the parity of odd sizes
        base = dataclasses.replace(tiny, **only_with.get(field.name, {}))
        value = getattr(base, field.name)
        new = changed.get(field.name)
        if new is None:
            new = not value if isinstance(value, bool) else 3 if value is None else value * 2
            new = new / 300 if field.name in {"attn_logit_softcap", "final_logit_softcap"} and value else new
        try:
            other = dataclasses.replace(base, **{field.name: new})
        except ValueError:
            continue
        torch.manual_seed(0)
        one = perturb(model_class(base).eval())
        torch.manual_seed(0)
        two = perturb(model_class(other).eval())
        shapes = [[tuple(p.shape) for p in model.parameters()] for model in (one, two)]
        if shapes[0] == shapes[1]:
            two.load_state_dict(one.state_dict())
            with torch.no_grad():
                assert not torch.equal(one(given), two(given)), field.name


@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_summary_and_trace_work_on_every_model(entry: Any) -> None:
    model_class = entry.load()
    tiny = model_class.checkpoint_format().config_class.tiny()
    told = summarise(model_class, tiny)
    assert told.parameters == sum(p.numel() for p in model_class(tiny).parameters())
    model = model_class(tiny).eval()
    traced = trace(model, model.dummy_input(1, 20, "cpu"))
    assert traced.flops > 0
    assert {operation.kind for operation in traced.operations} >= {"rearrange", "einsum", "linear"}


ENCODERS: list[tuple[str, str, dict[str, Any]]] = [
    ("bert", "BertForMaskedLM", {"type_vocab_size": 3}),
    ("bert", "BertForMaskedLM", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    ("vit", "ViTForImageClassification", {"num_labels": 7}),
    ("vit", "ViTForImageClassification", {"num_labels": 3, "num_channels": 1, "image_size": 20, "hidden_act": "relu"}),
]


@pytest.mark.parametrize(
    ("name", "reference_class", "fields"), ENCODERS, ids=[f"{e[0]}-{n}" for n, e in enumerate(ENCODERS)]
)
def test_encoders(name: str, reference_class: str, fields: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"vocab_size": 97, "max_position_embeddings": 64} if name == "bert" else {"image_size": 12, "patch_size": 4}
    sizes |= {"hidden_size": 36, "intermediate_size": 53, "num_hidden_layers": 3, "num_attention_heads": 3}
    made = getattr(transformers, reference_class)
    config = made.config_class(**(sizes | fields))
    config._attn_implementation = "eager"
    reference = perturb(made(config).eval())
    reference.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    given = ours.dummy_input(2, 40, "cpu")
    given = torch.randn_like(given) if given.is_floating_point() else torch.randint(97, given.shape)
    with torch.no_grad():
        logits = reference(given).logits
    assert close_enough("every setting", "logits", torch.float32, difference(ours, logits, given), FLOAT32_BAR, name)
    found = difference(prepare(load(tmp_path / "theirs"), "packed"), logits, given)
    assert close_enough("prepared for inference", "logits", torch.float32, found, FLOAT32_BAR, name)
    wide = given.double() if given.is_floating_point() else given
    with true_float64():
        twin = made(copy.deepcopy(config)).eval()
        twin.load_state_dict(reference.state_dict())
        exact = twin(wide).logits.detach()
    found = difference(type(ours).from_pretrained(tmp_path / "theirs", dtype=torch.float64), exact, wide)
    assert close_enough("every setting", "logits", torch.float64, found, FLOAT64_BAR, name)
    ours.save_pretrained(tmp_path / "ours")
    again = made.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(again(given).logits, logits)
        assert torch.equal(type(ours).from_huggingface(reference)(given), ours(given))
    ours(given).square().mean().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_bert_reads_segments_texts_of_different_lengths_and_older_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = transformers.BertConfig(
        vocab_size=97, hidden_size=36, intermediate_size=53, num_hidden_layers=3, num_attention_heads=3
    )
    config._attn_implementation = "eager"
    reference = perturb(transformers.BertForMaskedLM(config).eval())
    reference.save_pretrained(tmp_path)
    older = {}
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        older[name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")] = weight
    save_file(older, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours, token_ids, lengths = load(tmp_path), torch.randint(97, (2, 20)), torch.tensor([20, 13])
    segments = (torch.arange(20) > 8).long().expand(2, 20).contiguous()
    seen = (torch.arange(20) < rearrange(lengths, "batch -> batch 1")).long()
    other = token_ids.clone()
    other[0, 15] = (other[0, 15] + 1) % 97
    with torch.no_grad():
        theirs = reference(token_ids, attention_mask=seen, token_type_ids=segments).logits
        logits = ours(token_ids, segments, lengths)
        alone = ours(token_ids[1:, :13], segments[1:, :13])
        assert not torch.equal(ours(other)[0, 3], ours(token_ids)[0, 3])  # it sees what comes behind
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(logits[row, :length], theirs[row, :length], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(alone[0], logits[1, :13], atol=1e-4, rtol=1e-5)
    with pytest.raises(ValueError, match="513"):
        ours(torch.zeros(1, 513, dtype=torch.long))


def test_latent_attention_says_the_same_absorbed_and_expanded() -> None:
    from allformers.models.deepseek_v3.deepseek_v3 import DeepSeekV3, DeepSeekV3Config

    model = perturb(DeepSeekV3(DeepSeekV3Config.tiny()).double().eval())
    attention, token_ids = model.blocks[0].attention, torch.randint(256, (2, 30))
    with torch.no_grad():
        x, (cos, sin) = torch.randn(2, 30, 64).double(), model.rope(token_ids)
        mask = causal_mask(model.positions(token_ids), model.key_positions(token_ids))
        told = (*attention.queries(x, cos, sin), *attention.compress_kv(x, cos, sin), mask)
        torch.testing.assert_close(attention.absorbed(*told), attention.expanded(*told), atol=1e-12, rtol=1e-12)
        cache = model.make_cache()
        model(token_ids, cache=cache)
    held = sum(buffer.shape[-1] for buffer in cache.layers[0].buffers)
    assert held == 20 + 8  # the latent and the rotated key, whatever the number of heads


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_dispatched_tokens_get_what_gathered_weights_give(family: str) -> None:
    model_class = next(entry for entry in READING_ORDER if entry.model_type == family).load()
    config = model_class.checkpoint_format().config_class.tiny()
    experts = perturb(model_class(config).double().eval()).blocks[-1].mlp
    tokens = torch.randn(50, config.embedding_dim).double()
    with torch.no_grad():
        _, expert_ids = experts.route(tokens)
        outputs = experts.gather(tokens, expert_ids)
        torch.testing.assert_close(outputs, experts.dispatch(tokens, expert_ids), atol=1e-12, rtol=1e-12)
        assert not torch.allclose(outputs, experts.gather(tokens, expert_ids.flip(-1)))


def test_files_from_before_transformers_5_say_the_same(tmp_path: Path) -> None:
    from allformers.checkpoints.config_json import read_config
    from allformers.models.gemma3.gemma3 import Gemma3
    from allformers.models.llama.llama import Llama

    base = {**SIZES, "model_type": "llama", "rms_norm_eps": 1e-5}
    new = read_config(Llama.checkpoint_format(), {**base, "rope_parameters": LLAMA3})
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    assert read_config(Llama.checkpoint_format(), {**base, "rope_theta": 5e5, "rope_scaling": scaling}) == new
    plain = read_config(Llama.checkpoint_format(), {**base, "rope_theta": 1e4, "rope_scaling": None})
    assert plain.rope_type == "default"
    kind = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
    assert read_config(Llama.checkpoint_format(), {**base, "rope_theta": 5e5, "rope_scaling": kind}) == new
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}  # Qwen2.5's own words
    long = read_config(Llama.checkpoint_format(), {**base, "rope_scaling": yarn})
    fields = (long.rope_type, long.rope_factor, long.original_context_length, long.beta_fast)
    assert fields == ("yarn", 4.0, 32768, 32.0)
    gemma = {**SIZES, "model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    old = read_config(Gemma3.checkpoint_format(), {**gemma, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert (old.rope_theta, old.local_rope_theta, old.rope_type, old.rope_factor) == (1e6, 1e4, "linear", 8.0)


def test_what_is_not_here_is_refused_by_name(tmp_path: Path) -> None:
    from allformers.checkpoints import CheckpointError

    (tmp_path / "config.json").write_text('{"model_type": "mamba"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="gpt2, llama, mistral"):
        load(tmp_path)


# -- That all this notices ---------------------------------------------------------------------------------------------


def _swap_gate_and_up(model: Any) -> None:
    for block in model.blocks:
        block.mlp.gate, block.mlp.up = block.mlp.up, block.mlp.gate


def _share_keys_in_turn(model: Any) -> None:
    """Query head i with key head i mod kv_heads, in place of neighbours with one."""
    for block in model.blocks:
        for layer, side in ((block.attention.query, "rows"), (block.attention.output, "columns")):
            sizes = {"kv_heads": model.config.num_kv_heads, "head_dim": model.config.head_dim}
            pattern = "(kv_heads group head_dim) embed -> (group kv_heads head_dim) embed"
            if side == "columns":
                pattern = "embed (kv_heads group head_dim) -> embed (group kv_heads head_dim)"
            layer.weight.data = rearrange(layer.weight.data, pattern, **sizes).contiguous()


def _do_not_rotate(model: Any) -> None:
    model.inv_freq = lambda layer_type, positions: torch.zeros(model.config.head_dim // 2)


def _rotate_neighbours(model: Any) -> None:
    for block in model.blocks:
        for layer in (block.attention.query, block.attention.key):
            layer.weight.data = rearrange(
                layer.weight.data,
                "(heads component pair) embed -> (heads pair component) embed",
                component=2,
                pair=model.config.head_dim // 2,
            ).contiguous()


def _other_epsilon(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-4


def _wider_window(model: Any) -> None:
    model.config = dataclasses.replace(model.config, sliding_window=model.config.sliding_window + 1)


def _one_expert(model: Any) -> None:
    for block in model.blocks:
        block.mlp.top_k = block.mlp.axes["top_k"] = 1


def _no_query_bias(model: Any) -> None:
    nn.init.zeros_(model.blocks[0].attention.query.bias)


def _no_norm_of_queries(model: Any) -> None:
    for block in model.blocks:
        block.attention.query_norm = nn.Identity()


def _gain_not_from_one(model: Any) -> None:
    for module in model.modules():
        if type(module).__name__ == "GemmaNorm":
            module.weight.data -= 1


def _embeddings_not_scaled(model: Any) -> None:
    embed = model.embed
    model.embed = lambda token_ids: embed(token_ids) / model.config.embedding_dim**0.5


def _no_caps(model: Any) -> None:
    config = dataclasses.replace(model.config, attn_logit_softcap=None)
    for block in model.blocks:
        block.attention.config = config


def _full_first(model: Any) -> None:
    swapped = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}
    types = tuple(swapped[layer_type] for layer_type in model.config.layer_types)
    model.config = dataclasses.replace(model.config, layer_types=types)


def _one_rope_base(model: Any) -> None:
    model.config = dataclasses.replace(model.config, local_rope_theta=model.config.rope_theta)


def _no_expert_bias(model: Any) -> None:
    for block in model.blocks[1:]:
        nn.init.zeros_(block.mlp.expert_bias)


def _no_attention_scaling(model: Any) -> None:
    model.attention_scaling = lambda layer_type: 1.0


BREAKS: list[tuple[str, Callable[[Any], None]]] = [
    ("llama-0", _swap_gate_and_up),
    ("llama-0", _share_keys_in_turn),
    ("llama-0", _do_not_rotate),
    ("llama-0", _rotate_neighbours),
    ("llama-0", _other_epsilon),
    ("mistral-6", _wider_window),
    ("mixtral-9", _one_expert),
    ("mixtral-9", _swap_gate_and_up),
    ("qwen2-12", _no_query_bias),
    ("qwen3-14", _no_norm_of_queries),
    ("gemma-16", _gain_not_from_one),
    ("gemma-16", _embeddings_not_scaled),
    ("gemma2-20", _no_caps),
    ("gemma2-19", _full_first),
    ("gemma3-22", _one_rope_base),
    ("deepseek-v3-24", _no_expert_bias),
    ("qwen3-30", _no_attention_scaling),
]


@pytest.mark.parametrize(("case", "break_model"), BREAKS, ids=lambda one: getattr(one, "__name__", one))
def test_a_broken_model_is_noticed(case: str, break_model: Callable[[Any], None], tmp_path: Path) -> None:
    reference, token_ids = make_case(case), prompt()
    with torch.no_grad():
        logits = reference(token_ids).logits
    ours = type(load(_saved(reference, tmp_path))).from_pretrained(tmp_path)
    assert difference(ours, logits, token_ids) <= FLOAT32_BAR
    break_model(ours)
    assert difference(ours, logits, token_ids) > 10 * FLOAT32_BAR


def test_a_token_that_rounding_sends_to_another_expert_is_reported_as_that(tmp_path: Path) -> None:
    reference, token_ids = make_reference("Mixtral", {"num_local_experts": 2, "num_experts_per_tok": 1}), prompt()
    ours = load(_saved(reference, tmp_path))
    assert other_choices(ours, reference, token_ids) == []
    router = reference.model.layers[-1].mlp.gate.weight
    with torch.no_grad():  # two experts that fit equally well, but for a rounding error that is ours alone
        router[1] = router[0]
        ours.blocks[-1].mlp.router.weight.copy_(router)
        ours.blocks[-1].mlp.router.weight[1] *= 1 + 1e-6
    flips = other_choices(ours, reference, token_ids)
    assert flips
    assert all(flip.startswith("router 2 sends token ") and flip.endswith("lie 0.0e+00 apart") for flip in flips)


def test_ministral_has_the_window_in_some_layers(tmp_path: Path) -> None:
    """As published: the type of the model is Mistral's, and `layer_types` makes the difference."""
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    reference, token_ids = make_reference("Ministral", {"sliding_window": 7, "layer_types": layers}), prompt()
    described = _saved(reference, tmp_path / "theirs") / "config.json"
    described.write_text(described.read_text().replace('"model_type": "ministral"', '"model_type": "mistral"'))
    ours = load(tmp_path / "theirs")
    assert isinstance(ours, Ministral)
    with torch.no_grad():
        assert difference(ours, reference(token_ids).logits, token_ids) <= FLOAT32_BAR
    assert_same_text(ours, reference, token_ids, 24)
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(again(token_ids).logits, reference(token_ids).logits)
    assert load(tmp_path / "ours").config == ours.config


def _saved(reference: Any, folder: Path) -> Path:
    reference.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", [next(case for case in IDS if case.startswith(f"{name}-")) for name in FIRST])
def test_in_bfloat16_we_stray_no_further_from_the_truth_than_the_reference(case: str, tmp_path: Path) -> None:
    """The median over 400 tokens of each token's error; a bar of 1.1, as for GPT-2, and for the same reason.

    Over four seeds the nine models were at 0.96 to 1.05 of the reference's error. The median, because one token that
    rounding sends to another expert outweighs all that rounding does elsewhere, in either.
    """
    reference, token_ids = make_case(case, std=0.1), torch.randint(97, (8, 50))
    reference.save_pretrained(tmp_path)
    with true_float64():
        twin = type(reference)(copy.deepcopy(reference.config)).eval()
        twin.load_state_dict({key: value.bfloat16().double() for key, value in reference.state_dict().items()})
        truth = twin(token_ids).logits.detach()
    theirs = type(reference).from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager").eval()
    theirs.config._experts_implementation = "eager"
    ours = type(load(tmp_path)).from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        our_logits, their_logits = ours(token_ids), theirs(token_ids).logits
    assert our_logits.dtype == their_logits.dtype == torch.bfloat16
    errors = [(logits.double() - truth).square().mean(-1).sqrt() for logits in (our_logits, their_logits)]
    assert 0 < float(errors[0].median()) <= 1.1 * float(errors[1].median())
