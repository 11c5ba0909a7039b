"""GPT-2 on its own: what holds whatever its weights are. That it is GPT-2 and nothing else, the parity tests show."""

import copy
import dataclasses
import functools
import math
import pickle
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.models.gpt2.variants import CerebrasGPT2Config, StanfordGPT2Config
from allformers.models.registry import class_for
from allformers.nn.shapes import ShapeError
from conftest import names, perturb

ODD = GPT2Config(vocab_size=97, context_length=24, embedding_dim=39, num_layers=3, num_heads=3, mlp_dim=53, dropout=0.0)
"""No two axes of one size, none a power of two."""


def make_model(**changes: Any) -> GPT2:
    """A perturbed model of odd sizes, in evaluation mode."""
    return perturb(GPT2(dataclasses.replace(ODD, **changes))).eval()


def make_ids(batch: int = 2, seq: int = 11, vocab: int = ODD.vocab_size) -> Tensor:
    return torch.randint(vocab, (batch, seq))


def make_stream(batch: int = 2, seq: int = 11) -> Tensor:
    return torch.randn(batch, seq, ODD.embedding_dim)


def parts(model: GPT2, x: Tensor) -> tuple[nn.Module, Tensor]:
    """A middle block, and the mask for a residual stream."""
    return model.blocks[1], model.mask(torch.zeros(x.shape[:2], dtype=torch.long))


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((one - other).abs().max() / other.abs().max()).item()


def loss(model: GPT2, token_ids: Tensor, targets: Tensor) -> Tensor:
    logits = rearrange(model(token_ids), "batch seq vocab -> (batch seq) vocab")
    return F.cross_entropy(logits, rearrange(targets, "batch seq -> (batch seq)"))


# What sees what


@pytest.mark.parametrize("position", range(11))
def test_a_later_token_never_changes_an_earlier_output(position: int) -> None:
    model, before = make_model(), make_ids()
    after = before.clone()
    after[:, position:] = (after[:, position:] + 1) % ODD.vocab_size
    one, other = model(before), model(after)
    assert torch.equal(one[:, :position], other[:, :position])
    assert (one[:, position:] != other[:, position:]).any(dim=-1).all()


@pytest.mark.parametrize("position", range(11))
def test_attention_looks_back_only(position: int) -> None:
    before = make_stream()
    block, mask = parts(make_model(), before)
    after = before.clone()
    after[:, position] += 1
    one, other = block.attention(before, mask), block.attention(after, mask)
    assert torch.equal(one[:, :position], other[:, :position])
    assert (one[:, position:] != other[:, position:]).any(dim=-1).all()


def test_the_first_position_gathers_from_itself_alone() -> None:
    x = make_stream()
    block, mask = parts(make_model(), x)
    _, _, value = rearrange(block.attention.query_key_value(x[:, 0]), "batch (qkv width) -> qkv batch width", qkv=3)
    assert difference(block.attention(x, mask)[:, 0], block.attention.output(value)) < 1e-6


def test_attention_takes_a_mean() -> None:
    """Weights of each row add up to one: where all values are the same, that value comes out."""
    x = make_stream()
    block, mask = parts(make_model(), x)
    attention, width = block.attention, ODD.embedding_dim
    nn.init.zeros_(attention.query_key_value.weight.data[2 * width :])
    value = attention.query_key_value.bias[2 * width :]
    expected = repeat(attention.output(value), "embed -> batch seq embed", batch=2, seq=11)
    assert difference(attention(x, mask), expected) < 1e-6


def test_without_queries_attention_is_the_running_mean_of_values() -> None:
    x = make_stream()
    block, mask = parts(make_model(), x)
    attention, width = block.attention, ODD.embedding_dim
    nn.init.zeros_(attention.query_key_value.weight.data[:width])
    nn.init.zeros_(attention.query_key_value.bias.data[:width])
    values = attention.query_key_value(x)[..., 2 * width :]
    counts = rearrange(torch.arange(1, 12), "seq -> seq 1")
    assert difference(attention(x, mask), attention.output(values.cumsum(dim=1) / counts)) < 1e-5


def test_without_positions_a_text_is_a_bag_of_tokens() -> None:
    model, token_ids = make_model(num_layers=1), make_ids()
    shuffled = torch.cat([token_ids[:, torch.randperm(10)], token_ids[:, 10:]], dim=1)
    assert difference(model(token_ids)[:, -1], model(shuffled)[:, -1]) > 1e-2
    nn.init.zeros_(model.position_embedding.weight)
    assert difference(model(token_ids)[:, -1], model(shuffled)[:, -1]) < 1e-5


def test_the_mlp_treats_each_position_alone() -> None:
    mlp, x = make_model().blocks[1].mlp, make_stream()
    order = torch.randperm(11)
    assert difference(mlp(x[:, order]), mlp(x)[:, order]) < 1e-6
    changed = x.clone()
    changed[:, 4] += 1
    same = (mlp(changed) == mlp(x)).all(dim=-1)
    assert same.sum() == 2 * 10
    assert not same[:, 4].any()


def test_rows_of_a_batch_are_independent() -> None:
    model, before = make_model(), make_ids()
    after = before.clone()
    after[1] = (after[1] + 1) % ODD.vocab_size
    assert torch.equal(model(before)[0], model(after)[0])


def test_a_block_only_adds_to_the_residual_stream() -> None:
    x = make_stream()
    block, mask = parts(make_model(), x)
    for projection in (block.attention.output, block.mlp.down):
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    assert torch.equal(block(x, mask), x)


# Parameters


def test_gradients_reach_every_parameter() -> None:
    model = GPT2(ODD)
    loss(model, make_ids(), make_ids()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_tied_head_is_one_tensor_counted_once() -> None:
    tied, untied = make_model(tie_embeddings=True), make_model(tie_embeddings=False)
    assert tied.unembedding.weight is tied.token_embedding.weight
    assert untied.unembedding.weight is not untied.token_embedding.weight
    count = {id(model): sum(parameter.numel() for parameter in model.parameters()) for model in (tied, untied)}
    assert count[id(untied)] - count[id(tied)] == ODD.vocab_size * ODD.embedding_dim


def test_a_fresh_model_guesses_evenly() -> None:
    """The loss is ln(vocab), the one of a uniform guess, within 0.05.

    Logits of standard deviation s cost s²/2 more than even ones. The last norm gives each of 64 directions unit
    variance and the head's weights have 0.02, so s is 0.16 and the cost 0.013; over 1024 targets the mean scatters by
    0.16 / 32 = 0.005.
    """
    model = GPT2(GPT2Config.tiny()).eval()
    value = loss(model, make_ids(8, 128, 256), make_ids(8, 128, 256)).item()
    assert value == pytest.approx(math.log(256), abs=0.05)


def test_initialisation_is_the_papers() -> None:
    """Standard deviations within 5%, six times the scatter of the smallest matrix: 1 / sqrt(2 * 64 * 64) = 0.011."""
    model = GPT2(GPT2Config.tiny())
    residual = re.compile(r"blocks\.\d\.(attention\.output|mlp\.down)\.weight")
    seen = 0
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        else:
            scaled = residual.fullmatch(name) is not None
            seen += scaled
            std = 0.02 / math.sqrt(2 * 2) if scaled else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert parameter.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(parameter.numel())), name
    assert seen == 2 * 2


def test_nothing_but_parameters_is_stored() -> None:
    model = make_model()
    assert model.state_dict().keys() == dict(model.named_parameters(remove_duplicate=False)).keys()


# Configuration

OTHER_VALUES = {
    "vocab_size": 96,
    "context_length": 23,
    "embedding_dim": 42,
    "num_layers": 2,
    "num_heads": 13,
    "mlp_dim": 52,
    "dropout": 0.5,
    "norm_eps": 0.1,
    "tie_embeddings": False,
    "scale_by_layer": False,
    "float32_scores": False,
}


def fingerprint(config: GPT2Config, token_ids: Tensor) -> tuple[dict[str, torch.Size], Tensor]:
    """What a configuration makes: shapes, and logits in training mode and bfloat16, where every field can show."""
    torch.manual_seed(0)
    model = perturb(class_for(config)(config)).bfloat16().train()
    return {name: parameter.shape for name, parameter in model.named_parameters()}, model(token_ids)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(StanfordGPT2Config)])
def test_every_field_is_read(name: str) -> None:
    token_ids = make_ids(vocab=96)
    plain = {field.name for field in dataclasses.fields(ODD)}
    base = ODD if name in plain else StanfordGPT2Config(**dataclasses.asdict(ODD))
    shapes, logits = fingerprint(base, token_ids)
    same_shapes, same_logits = fingerprint(dataclasses.replace(base), token_ids)
    assert shapes == same_shapes
    assert torch.equal(logits, same_logits)
    other_shapes, other_logits = fingerprint(dataclasses.replace(base, **{name: OTHER_VALUES[name]}), token_ids)
    assert shapes != other_shapes or not torch.equal(logits, other_logits)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *[
            (name, [0, -1, 1.5, True, "12", None])
            for name in ("vocab_size", "context_length", "embedding_dim", "num_layers", "num_heads", "mlp_dim")
        ],
        ("embedding_dim", [40, 2]),
        ("dropout", [-0.1, 1, 1.5, math.nan]),
        ("norm_eps", [0, -1e-5, math.nan]),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} ") as refusal:
            dataclasses.replace(ODD, **{name: value})
        assert str(value) in str(refusal.value)


def test_a_configuration_is_a_value() -> None:
    assert dataclasses.replace(ODD) == ODD
    assert len({ODD, dataclasses.replace(ODD), dataclasses.replace(ODD, num_layers=1)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        ODD.num_layers = 4  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        GPT2Config(97, 24, 39, 3, 3, 53)  # type: ignore[misc]


def test_dropout_acts_in_training_only() -> None:
    model, token_ids = make_model(dropout=0.3), make_ids()
    assert torch.equal(model(token_ids), model(token_ids))
    assert torch.equal(model(token_ids), make_twin(model, dropout=0.0)(token_ids))
    model.train()
    assert not torch.equal(model(token_ids), model(token_ids))


def make_twin(model: GPT2, **changes: Any) -> GPT2:
    """The same weights under another configuration."""
    twin = GPT2(dataclasses.replace(model.config, **changes)).eval()
    twin.load_state_dict(model.state_dict())
    return twin


# Caches


@pytest.mark.parametrize("chunks", [[1] * 24, [24], [5, 1, 7, 3, 8], [23, 1], [1, 23]], ids=str)
def test_with_a_cache_equals_without(chunks: list[int]) -> None:
    """In float64, where nothing hides behind rounding."""
    model, token_ids = make_model().double(), make_ids(seq=24)
    cache = model.make_cache()
    logits = [model(chunk, cache=cache) for chunk in token_ids.split(chunks, dim=1)]
    assert cache.length == 24
    assert difference(torch.cat(logits, dim=1), model(token_ids)) < 1e-13


@pytest.mark.parametrize("chunks", [[17], [9, 8], [9, 1, 1, 1, 1, 1, 1, 1, 1]], ids=str)
def test_a_padded_row_equals_the_row_alone(chunks: list[int]) -> None:
    model = make_model().double()
    lengths = torch.tensor([17, 9, 16])
    rows = [make_ids(1, length) for length in lengths.tolist()]
    padded = torch.cat([F.pad(row, (17 - row.shape[1], 0), value=5) for row in rows])
    cache = model.make_cache(left_padding=17 - lengths)
    logits = torch.cat([model(chunk, cache=cache) for chunk in padded.split(chunks, dim=1)], dim=1)
    for row, padded_logits in zip(rows, logits, strict=True):
        assert difference(padded_logits[17 - row.shape[1] :], model(row)[0]) < 1e-13


def test_what_stands_in_the_padding_does_not_matter() -> None:
    model, one = make_model(), make_ids()
    other = one.clone()
    other[:, :4] = make_ids(seq=4)
    padding = torch.tensor([4, 4])
    outputs = [model(ids, cache=model.make_cache(left_padding=padding))[:, 4:] for ids in (one, other)]
    assert torch.equal(*outputs)


# Bad input


def test_a_text_longer_than_the_context_is_refused() -> None:
    model = make_model()
    with pytest.raises(ValueError, match=names(25, 24)):
        model(make_ids(seq=25))
    cache = model.make_cache()
    model(make_ids(seq=20), cache=cache)
    with pytest.raises(ValueError, match=names(25, 24)):
        model(make_ids(seq=5), cache=cache)
    assert cache.length == 20
    model(make_ids(seq=4), cache=cache)


@pytest.mark.parametrize("token", [-1, 97, 2**31])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    token_ids = make_ids()
    token_ids[1, 3] = token
    with pytest.raises(ValueError, match=names(token, 0, 96)):
        make_model()(token_ids)


@pytest.mark.parametrize(
    ("token_ids", "reason"),
    [
        (make_ids()[0], (1, 2)),
        (make_ids()[None], (3, 2)),
        (make_ids().float(), ("float32",)),
        (make_ids().bool(), ("bool",)),
        (make_ids().tolist(), ("list", "batch seq")),
        (None, ("NoneType", "batch seq")),
    ],
    ids=["one axis", "three axes", "floats", "booleans", "a list", "None"],
)
def test_token_ids_that_do_not_fit_are_refused_by_name(token_ids: Any, reason: tuple[object, ...]) -> None:
    with pytest.raises(ShapeError, match=names("GPT2.forward", "`token_ids`", *reason)):
        make_model()(token_ids)


@pytest.mark.parametrize("part", ["attention", "mlp", "block", "unembed"])
@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.zeros(2, 11, 38), (38, "`embed`", 39)),
        (torch.zeros(11, 39), (2, 3)),
        (torch.zeros(2, 11, 39, dtype=torch.long), ("int64",)),
    ],
    ids=["width", "axes", "dtype"],
)
def test_a_stream_that_does_not_fit_is_refused_by_name(part: str, x: Tensor, reason: tuple[object, ...]) -> None:
    model = make_model()
    block, mask = parts(model, make_stream())
    calls = {
        "attention": lambda: block.attention(x, mask),
        "mlp": lambda: block.mlp(x),
        "block": lambda: block(x, mask),
        "unembed": lambda: model.unembed(x),
    }
    with pytest.raises(ShapeError, match=names("`x`", *reason)):
        calls[part]()


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.zeros(1, 1, 11, 11), ("float32",)),
        (torch.zeros(11, 11, dtype=torch.bool), (2, 4)),
        (torch.zeros(1, 1, 10, 11, dtype=torch.bool), (10, "`seq`", 11)),
        (torch.zeros(3, 1, 11, 11, dtype=torch.bool), (3, "`batch`", 2)),
    ],
    ids=["dtype", "axes", "seq", "batch"],
)
def test_a_mask_that_does_not_fit_is_refused_by_name(mask: Tensor, reason: tuple[object, ...]) -> None:
    with pytest.raises(ShapeError, match=names("`mask`", *reason)):
        make_model().blocks[0](make_stream(), mask)


# Living with PyTorch


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # PyTorch's own import
def test_compiled_in_one_graph_it_computes_the_same() -> None:
    model = GPT2(GPT2Config.tiny()).eval()
    perturb(model)
    token_ids = make_ids(vocab=256)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert difference(compiled(token_ids), model(token_ids)) < 1e-5


@pytest.mark.slow
def test_compiled_gradients_are_the_same() -> None:
    """Traced by the compiler but run by PyTorch: quick, and enough to show that training compiles in one graph too."""
    model, compiled = make_model(), make_model()
    compiled.load_state_dict(model.state_dict())
    token_ids, targets = make_ids(), make_ids()
    loss(model, token_ids, targets).backward()
    loss(torch.compile(compiled, fullgraph=True, backend="aot_eager"), token_ids, targets).backward()
    for one, other in zip(compiled.parameters(), model.parameters(), strict=True):
        assert difference(one.grad, other.grad) < 1e-5


def test_functional_calls_and_gradients_of_each_row() -> None:
    model, token_ids, targets = make_model(), make_ids(), make_ids()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def row_loss(weights: dict[str, Tensor], row: Tensor, row_targets: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, weights, (row[None],))
        return F.cross_entropy(logits[0], row_targets)

    together = torch.func.vmap(torch.func.grad(row_loss), in_dims=(None, 0, 0))(weights, token_ids, targets)
    for row in range(2):
        model.zero_grad()
        loss(model, token_ids[row : row + 1], targets[row : row + 1]).backward()
        for name, parameter in model.named_parameters():
            assert difference(together[name][row], parameter.grad) < 1e-5, name


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_compute_the_same_and_share_nothing(how: str) -> None:
    model, token_ids = make_model(), make_ids()
    before = model(token_ids)
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert twin.config == model.config
    assert twin.config.axes == model.config.axes
    assert torch.equal(twin(token_ids), before)
    assert twin.unembedding.weight is twin.token_embedding.weight
    perturb(twin)
    assert torch.equal(model(token_ids), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_run(dtype: torch.dtype) -> None:
    model, token_ids = make_model(), make_ids()
    expected = model(token_ids)
    logits = model.to(dtype)(token_ids)
    assert logits.dtype == dtype
    assert difference(logits.float(), expected) < 20 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


# Over random configurations

sizes = st.builds(
    lambda kind, heads, width, **fields: kind(num_heads=heads, embedding_dim=heads * width, **fields),
    kind=st.sampled_from(
        [
            GPT2Config,
            CerebrasGPT2Config,
            functools.partial(StanfordGPT2Config, float32_scores=False),
            functools.partial(StanfordGPT2Config, scale_by_layer=False),
        ]
    ),
    heads=st.integers(1, 5),
    width=st.integers(1, 7),
    vocab_size=st.integers(1, 60),
    context_length=st.integers(1, 20),
    num_layers=st.integers(1, 3),
    mlp_dim=st.integers(1, 30),
    tie_embeddings=st.booleans(),
)


@given(config=sizes, batch=st.integers(1, 3), data=st.data())
def test_any_configuration_is_causal_and_may_cache(config: GPT2Config, batch: int, data: st.DataObject) -> None:
    """One test of three properties, so that each example builds one model."""
    torch.manual_seed(0)
    seq = data.draw(st.integers(1, config.context_length), label="seq")
    cut = data.draw(st.integers(0, seq), label="cut")
    model = perturb(class_for(config)(config)).double().eval()
    token_ids = make_ids(batch, seq, config.vocab_size)
    logits = model(token_ids)
    assert logits.shape == (batch, seq, config.vocab_size)
    assert logits.isfinite().all()

    other_end = torch.cat([token_ids[:, :cut], make_ids(batch, seq - cut, config.vocab_size)], dim=1)
    assert torch.equal(model(other_end)[:, :cut], logits[:, :cut])

    cache = model.make_cache(capacity=seq)
    cached = torch.cat([model(chunk, cache=cache) for chunk in token_ids.tensor_split([cut], dim=1)], dim=1)
    torch.testing.assert_close(cached, logits, rtol=0, atol=1e-12 * logits.abs().max().item())
