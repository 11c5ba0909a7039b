"""A model prepared for inference computes what it computed before, and says so where it cannot."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allformers.checkpoints import CheckpointError
from allformers.generation.decoder import Decoder
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.models.mistral.mistral import Mistral, MistralConfig
from allformers.models.registry import READING_ORDER, class_for
from allformers.nn.cache import Cache, FixedState
from allformers.speed import linear as linear_module
from allformers.speed import steps as steps_module
from allformers.speed.linear import GROUP_SIZE, PackedLinear, QuantizedLinear, prepare, unprepare
from allformers.speed.steps import CompiledSteps, compile_steps
from conftest import perturb

pytestmark = pytest.mark.xdist_group("compiler")  # which takes seconds to wake up
SMALLEST = {entry.name: entry.sizes()[0].config for entry in READING_ORDER}


CAN_COMPILE = linear_module.can_compile


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test as it is, and once more, among the slow ones, compiled; those that are slow anyway only so."""
    ways = [pytest.param("compiled", marks=pytest.mark.slow)]
    if metafunc.definition.get_closest_marker("slow") is None:
        ways.insert(0, pytest.param("as it is"))
    metafunc.parametrize("_small_too", ways, indirect=True)


@pytest.fixture(autouse=True)
def _small_too(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare layers as small as those of the tests; once where nothing can be compiled, and once where it can."""
    monkeypatch.setattr(linear_module, "MIN_WEIGHTS", 0)
    if request.param == "as it is":
        monkeypatch.setattr(linear_module, "can_compile", lambda: False)
        monkeypatch.setattr(steps_module, "can_compile", lambda: True)  # which is done at the first step, if at all


def make(name: str = "gpt2", std: float = 0.1) -> Any:
    entry = next(entry for entry in READING_ORDER if entry.name == name)
    return perturb(entry.load()(SMALLEST[name]).eval(), std)


def read(model: Any, batch: int = 2, seq: int = 12) -> Tensor:
    """Something for a model to read: images, or tokens."""
    example = model.dummy_input(batch, seq, "cpu")
    generator = torch.Generator().manual_seed(1)
    if example.is_floating_point():
        return torch.randn(example.shape, generator=generator)
    return torch.randint(model.config.vocab_size, example.shape, generator=generator)


def difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())


def linears(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("name", SMALLEST)
def test_every_model_of_the_family_says_what_it_said(name: str) -> None:
    plain = make(name)
    prepared = prepare(copy.deepcopy(plain), "packed")
    assert linears(prepared)
    assert all(isinstance(layer, PackedLinear) for layer in linears(prepared))
    given = read(plain)
    with torch.inference_mode():
        assert difference(prepared(given), plain(given)) < 1e-5
        if isinstance(plain, Decoder):
            ours = prepared.generate(given[:1], max_new_tokens=30, temperature=0)
            assert torch.equal(ours, plain.generate(given[:1], max_new_tokens=30, temperature=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(1,), (1, 1), (3,), (2, 40)])
def test_a_layer_is_the_same_layer(leading: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    plain = nn.Linear(70, 50, bias=bias, dtype=dtype)
    x = torch.randn(*leading, 70, dtype=dtype)
    with torch.inference_mode():
        ours, theirs = prepare(copy.deepcopy(plain), "packed")(x), plain(x)
    assert ours.dtype == dtype
    assert ours.shape == theirs.shape
    bar = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 0.01}[dtype]
    assert difference(ours, theirs) < bar
    with torch.inference_mode():  # rows that do not lie in one piece
        apart = torch.randn(70, 2, dtype=dtype)[:, 0].expand(*leading, 70)
        assert difference(prepare(copy.deepcopy(plain), "packed")(apart), plain(apart)) < bar


def test_layers_too_small_to_gain_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make()
    sizes = sorted(layer.weight.numel() for layer in linears(plain))
    assert sizes[0] < sizes[-1]
    monkeypatch.setattr(linear_module, "MIN_WEIGHTS", sizes[-1])
    for layer in linears(prepare(plain, "packed")):
        assert isinstance(layer, PackedLinear) == (layer.weight.numel() == sizes[-1])


def test_without_a_compiler_a_warning_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(linear_module, "can_compile", CAN_COMPILE)
    linear_module.can_compile.cache_clear()
    monkeypatch.setattr(linear_module, "_lower", fail)
    with pytest.warns(UserWarning, match="no compiler$"):
        assert not linear_module.can_compile()
    assert not linear_module.can_compile()
    linear_module.can_compile.cache_clear()


def test_a_prepared_model_still_learns_and_never_uses_old_weights() -> None:
    plain = make()
    prepared, given = prepare(copy.deepcopy(plain), "packed"), read(plain)
    for model in (plain, prepared):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        logits = model(given)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), given[:, 1:].flatten()).backward()
        optimizer.step()
    ours, theirs = dict(prepared.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(difference(ours[name].grad, theirs[name].grad) < 1e-5 for name in theirs)
    with torch.inference_mode():
        for some in (given, given[:1, :1]):
            assert difference(prepared(some), plain(some)) < 1e-5
    prepare(prepared, "packed")  # anew
    with torch.inference_mode():
        assert difference(prepared(given), plain(given)) < 1e-5


def test_a_prepared_model_is_saved_loaded_into_cast_and_copied(tmp_path: Path) -> None:
    plain, other = make(), make()
    prepared, given = prepare(copy.deepcopy(plain), "packed"), read(plain)
    prepared.save_pretrained(tmp_path)
    with torch.inference_mode():
        assert torch.equal(GPT2.from_pretrained(tmp_path)(given), plain(given))
        assert difference(copy.deepcopy(prepared)(given), plain(given)) < 1e-5
    prepared.load_state_dict(other.state_dict())
    with torch.inference_mode():
        assert difference(prepared(given), other(given)) < 1e-5
        assert torch.equal(prepared.to(torch.bfloat16)(given), other.to(torch.bfloat16)(given))


def test_it_steps_aside_under_autocast_and_for_compilers() -> None:
    plain = make()
    prepared, given = prepare(copy.deepcopy(plain), "packed"), read(plain)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prepared(given), plain(given))
    with torch.inference_mode():
        exported = torch.export.export(prepared, (given,)).module()
        assert difference(exported(given), plain(given)) < 1e-5


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_a_quantized_layer_multiplies_the_weights_that_it_says_it_has(rows: int, bias: bool, kind: str) -> None:
    plain = nn.Linear(2 * GROUP_SIZE, 48, bias=bias)
    quantized, x = QuantizedLinear(plain, kind), torch.randn(2, rows, 2 * GROUP_SIZE)[:1]
    with torch.inference_mode():
        assert difference(quantized(x), F.linear(x, quantized.dequantize(), plain.bias)) < 1e-6


def test_a_quantized_model_is_not_saved_over_a_whole_one(tmp_path: Path) -> None:
    plain = make()
    plain.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="QuantizedLinear"):
        prepare(plain, "int8").save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("kind", "steps"), [("int8", 127), ("int4", 7)])
def test_quantization_is_to_the_nearest_step(kind: str, steps: int) -> None:
    plain = nn.Linear(4 * GROUP_SIZE, 48)
    off = (QuantizedLinear(plain, kind).dequantize() - plain.weight).detach().abs()
    group = 4 * GROUP_SIZE if kind == "int8" else GROUP_SIZE
    largest = plain.weight.detach().abs().unflatten(1, (-1, group)).amax(-1, keepdim=True)
    assert (off.unflatten(1, (-1, group)) <= 0.51 * largest / steps).all()
    assert off.max() > 0.3 * largest.max() / steps


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.27), ("int4", 0.16)])
def test_a_quantized_model_takes_less_memory_and_keeps_its_embeddings(kind: str, share: float) -> None:
    plain = make()
    layers = sum(layer.weight.nbytes for layer in linears(plain))
    quantized = prepare(copy.deepcopy(plain), kind)
    made = [module for module in quantized.modules() if isinstance(module, QuantizedLinear)]
    assert sum(module.qweight.nbytes + module.scale.nbytes for module in made) < share * layers
    assert torch.equal(quantized.token_embedding.weight, plain.token_embedding.weight)
    given = read(plain)
    with torch.inference_mode():
        off = difference(quantized(given), plain(given))
    assert 1e-5 < off < 0.5
    assert prepare(quantized, kind) is quantized
    assert made == [module for module in quantized.modules() if isinstance(module, QuantizedLinear)]
    for other in {"plain", "packed", "int8", "int4"} - {kind}:
        with pytest.raises(ValueError, match=kind):
            prepare(quantized, other)
    with pytest.raises(ValueError, match=kind):
        prepare(quantized, training=True)
    with pytest.raises(ValueError, match=kind):
        unprepare(quantized)


def test_what_cannot_be_prepared_is_refused_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPT2Config(
        vocab_size=64, context_length=8, embedding_dim=2 * GROUP_SIZE, num_layers=1, num_heads=2, mlp_dim=GROUP_SIZE + 8
    )
    model = GPT2(config)
    with pytest.raises(ValueError, match=r"plain, packed, int8, int4.*'int2'"):
        prepare(model, "int2")
    with pytest.raises(ValueError, match="int8"):
        prepare(model, "int8", training=True)
    with pytest.raises(ValueError, match=r"\b32\b.*\b40\b"):
        prepare(model, "int4")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchao", None)
        with pytest.raises(ImportError, match=r"allformers\[quantise\]"):
            prepare(model, "int8")
    layer = nn.Linear(GROUP_SIZE, 8)
    with pytest.raises(ValueError, match="by itself"):
        prepare(layer, "int8")
    monkeypatch.setattr(linear_module, "pack_weight", lambda weight: 1 / 0 if len(weight) == 64 else weight)
    monkeypatch.setattr(linear_module, "MIN_WEIGHTS", 0)
    with pytest.raises(ZeroDivisionError):  # some layers are packed already
        prepare(model, "packed")
    assert all(type(module) is nn.Linear for module in [layer, *linears(model)])
    assert len(linears(model)) == 5


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whatever is handed to the compiler, which remembers nothing of other tests."""
    torch.compiler.reset()
    graphs: list[Any] = []
    compiler = steps_module._compile

    def noting(graph: Any, given: Any) -> Any:
        graphs.append(graph)
        return compiler(graph, given)

    monkeypatch.setattr(steps_module, "_compile", noting)
    monkeypatch.setattr(linear_module, "MIN_WEIGHTS", 2**17)
    return graphs


@pytest.mark.slow
def test_compiled_steps_write_the_same_text_whatever_its_length(compilations: list[Any]) -> None:
    plain = perturb(Mistral(MistralConfig.tiny(sliding_window=7, num_layers=6)).eval(), 0.3)
    compiled, given = compile_steps(copy.deepcopy(plain)), read(plain)

    def both(length: int, **settings: Any) -> None:
        expected = plain.generate(given[:1, :length], max_new_tokens=60, **settings)
        assert torch.equal(compiled.generate(given[:1, :length], max_new_tokens=60, **settings), expected)

    both(5, temperature=0)
    both(1, temperature=0)
    both(12, temperature=1.0, seed=3)
    compiled.train()
    both(12, temperature=0)
    assert compiled.training
    assert len(compilations) == 1  # before the window is full, and from then on
    assert len(list(compilations[0].children())) < 6  # and not for each layer
    with torch.no_grad():  # new weights, the same program
        for model in (plain, compiled):
            model.blocks[1].mlp.up.weight.mul_(-1)
    both(5, temperature=0)
    assert len(compilations) == 1


@pytest.mark.slow  # a program of its own
def test_compiled_steps_write_several_texts_at_once(compilations: list[Any]) -> None:
    plain = perturb(Mistral(MistralConfig.tiny(sliding_window=7)).eval(), 0.3)
    compiled, given = compile_steps(copy.deepcopy(plain)), read(plain)
    texts = [given[0, :3], given[1, :9]]
    together = compiled.generate_batch(texts, max_new_tokens=30, temperature=0)
    for text, written in zip(texts, together, strict=True):
        assert torch.equal(written, plain.generate(text[None], max_new_tokens=30, temperature=0)[0])
    assert len(compilations) == 1


def test_a_copy_of_a_compiled_model_has_steps_of_its_own(tmp_path: Path) -> None:
    model = compile_steps(make())
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copy.deepcopy(model), loaded):
        assert isinstance(other.decode_step, CompiledSteps)
        assert other.decode_step.model is other is not model
    assert list(model.state_dict()) == list(make().state_dict())


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Bert"):
        compile_steps(make("bert"))
    monkeypatch.setattr(linear_module, "MIN_WEIGHTS", 2**17)
    assert CompiledSteps(make()).is_small
    assert not CompiledSteps(make("mixtral")).is_small  # several texts go different ways, one by one
    monkeypatch.setattr(steps_module, "can_compile", lambda: False)
    assert "decode_step" not in vars(compile_steps(make()))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [None, "plain", "packed", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_steps_of_every_layout(layout: str | None, dtype: torch.dtype) -> None:
    model = make().to(dtype)
    if layout is not None:
        prepare(model, layout)
    given, compiled = read(model, 1), compile_steps(copy.copy(model))
    caches = model.make_cache(), compiled.make_cache()
    with torch.inference_mode():
        expected, found = (
            torch.cat([one.decode_step(token, cache) for token in given.split(1, dim=1)])
            for one, cache in zip((model, compiled), caches, strict=True)
        )
    assert difference(found, expected) < (1e-5 if dtype is torch.float32 else 3e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, config in SMALLEST.items() if issubclass(class_for(config), Decoder)])
def test_every_decoder_compiles(name: str, compilations: list[Any]) -> None:
    plain = make(name)
    given, compiled = read(plain, 1), compile_steps(prepare(copy.deepcopy(plain)))
    written = compiled.generate(given, max_new_tokens=20, temperature=0)
    assert torch.equal(written, plain.generate(given, max_new_tokens=20, temperature=0))
    assert len(compilations) == 1


class RecurrentBlock(nn.Module):
    """A layer with a state of a fixed size: what it has read, half forgotten at each pass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, cache: FixedState | None = None) -> Tensor:
        state = torch.zeros_like(x[:, 0])
        if cache is not None:
            state = cache.values[0] if cache.values else state
            cache.update(state / 2 + x[:, -1])
        return x + torch.tanh(self.mix(x + state[:, None]))


class Recurrent(GPT2):
    """A model of such layers."""

    def make_cache(self, capacity: int | None = None, left_padding: Tensor | None = None) -> Cache:
        cache = super().make_cache(capacity, left_padding)
        cache.layers = [FixedState(cache) for _ in cache.layers]
        return cache


@pytest.mark.slow
def test_a_state_of_a_fixed_size_is_compiled_too(compilations: list[Any]) -> None:
    model = Recurrent(GPT2Config.tiny(num_layers=4)).eval()
    model.blocks = nn.ModuleList(RecurrentBlock(64) for _ in range(4))
    perturb(model, 0.1)
    given = read(model, 1)[:, :5]
    expected = model.generate(given, max_new_tokens=20, temperature=0)
    assert torch.equal(compile_steps(model).generate(given, max_new_tokens=20, temperature=0), expected)
    assert len(compilations) == 1


@pytest.mark.slow  # an export
def test_a_program_is_exported_for_any_length() -> None:
    """The size below which oneDNN is not called would make it one for short texts only."""
    model = prepare(GPT2(GPT2Config.tiny()).eval())
    short, long = torch.zeros(2, 16, dtype=torch.long), torch.ones(2, 60, dtype=torch.long)
    length = torch.export.Dim("seq", min=2, max=64)
    program = torch.export.export(model, (short,), dynamic_shapes={"token_ids": {1: length}}).module()
    torch.testing.assert_close(program(long), model(long))
