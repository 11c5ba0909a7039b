"""From tensors to models: what names mean, which heads there are, what is left out aloud, and what is refused by name.

Wherever the reference loads a file, so do we, with the same values; or the message says what is the matter with it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import allformers
from allformers.checkpoints import CheckpointError
from allformers.models.bert.bert import Bert, BertConfig, BertEncoder
from allformers.models.deepseek_v3.deepseek_v3 import DeepSeekV3, DeepSeekV3Config
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.models.llama.llama import Llama, LlamaConfig
from allformers.models.registry import READING_ORDER, load_config
from allformers.models.vit.vit import ViT, ViTEncoder
from conftest import names, perturb

Weights = dict[str, Tensor]

TEXT = {"vocab_size": 97, "hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 53}
IMAGES = {name: size for name, size in TEXT.items() if name != "vocab_size"}
IMAGES |= {"image_size": 20, "patch_size": 4, "num_labels": 5}
GPT2_SIZES = {"vocab_size": 97, "n_positions": 20, "n_embd": 12, "n_layer": 2, "n_head": 3, "pad_token_id": 0}
GPT2_SIZES |= {"bos_token_id": 0, "eos_token_id": 0}
LLAMA_SIZES = {**TEXT, "num_key_value_heads": 1, "head_dim": 12, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def _quiet_reference() -> None:
    transformers.utils.logging.disable_progress_bar()


def reference(name: str, sizes: dict[str, Any], **fields: Any) -> Any:
    """A small reference, called by its class, with every parameter perturbed."""
    made = getattr(transformers, name)
    config = made.config_class(**sizes, **fields)
    config._attn_implementation = "eager"
    return perturb(made(config).eval())


def edit_weights(folder: Path, edit: Callable[[Weights], Weights]) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(edit(weights), folder / "model.safetensors", metadata={"format": "pt"})


def move(folder: Path, old: str, new: str) -> None:
    """File a weight under another name."""
    edit_weights(folder, lambda weights: {new if name == old else name: one for name, one in weights.items()})


def edit_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value != "absent"})
    )


def token_ids() -> Tensor:
    return torch.randint(97, (2, 11))


def assert_same(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 5e-6 * theirs.abs().max()


# Names


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Llama, Path]:
    """A small Llama, and its folder."""
    model = perturb(Llama(LlamaConfig.tiny())).eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: name.replace("model.", "model._orig_mod."),  # a part alone was compiled
        lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
        lambda name: name.removeprefix("model."),
        lambda name: f"_orig_mod.{name.removeprefix('model.')}",
    ],
    ids=["compiled", "parallel", "both", "both otherwise", "a part", "checkpointed", "bare", "bare and compiled"],
)
def test_names_that_a_wrapper_has_changed(wrap: Callable[[str], str], llama: tuple[Llama, Path]) -> None:
    model, folder = llama
    edit_weights(folder, lambda weights: {wrap(name): one for name, one in weights.items()})
    assert_same(allformers.load(folder), model)


class Compiled(nn.Module):
    """What `torch.compile` puts around a module, without the seconds that importing the compiler takes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


@pytest.mark.parametrize(
    "wrap",
    [
        Compiled,
        nn.DataParallel,
        lambda model: nn.DataParallel(Compiled(model)),
        pytest.param(torch.compile, marks=pytest.mark.slow),
    ],
    ids=["compiled", "parallel", "both", "torch.compile"],
)
@pytest.mark.parametrize("family", ["gpt2", "bert"])  # copied from memory, and by way of files
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_live_model_inside_a_wrapper(wrap: Callable[[Any], Any], family: str) -> None:
    model = reference("GPT2LMHeadModel", GPT2_SIZES) if family == "gpt2" else reference("BertForMaskedLM", TEXT)
    ours = (GPT2 if family == "gpt2" else Bert).from_huggingface(wrap(model))
    given = token_ids()
    with torch.no_grad():
        assert_close(ours(given), model(given).logits)


@pytest.mark.parametrize("outer", ["net.", "base_model.model.", "model."])
def test_a_prefix_that_hides_all_names_is_the_whole_message(outer: str, llama: tuple[Llama, Path]) -> None:
    _, folder = llama
    edit_weights(folder, lambda weights: {outer + name: one for name, one in weights.items()})
    with pytest.raises(CheckpointError, match=repr(outer)) as refused:
        allformers.load(folder)
    assert "\n" not in str(refused.value)


def test_a_list_of_faults_has_some_of_each_kind_and_the_number_of_all(llama: tuple[Llama, Path]) -> None:
    _, folder = llama
    edit_weights(folder, lambda weights: {name.replace("_proj", "_project"): one for name, one in weights.items()})
    with pytest.raises(CheckpointError, match=names("14 missing", "14 unexpected", "... and 8 more")) as refused:
        allformers.load(folder)
    message = str(refused.value)
    assert message.count("missing: layers.") == message.count("unexpected: model.layers.") == 6
    assert "layers.0.self_attn.q_proj.weight (for blocks.0.attention.query.weight)" in message


def test_a_fault_in_a_wrapped_model_is_not_put_down_to_the_wrapper(llama: tuple[Llama, Path]) -> None:
    _, folder = llama
    edit_weights(folder, lambda ws: {f"_orig_mod.{name}": one for name, one in ws.items() if "final" not in name})
    edit_weights(folder, lambda ws: {name: one for name, one in ws.items() if "layers.1.mlp.up_proj" not in name})
    with pytest.raises(CheckpointError, match=names("1 missing", "layers.1.mlp.up_proj.weight")) as refused:
        allformers.load(folder)
    assert "begins with" not in str(refused.value)


# A weight that is there twice, or under another name


@pytest.mark.parametrize("factor", [1, 2], ids=["equal", "different"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"),
        ("bert.embeddings.LayerNorm.bias", "bert.embeddings.LayerNorm.beta"),
        ("bert.encoder.layer.1.output.dense.bias", "encoder.layer.1.output.dense.bias"),
        ("cls.predictions.bias", "bert.cls.predictions.bias"),
    ],
)
def test_a_weight_that_is_there_twice_is_refused_by_both_names(
    one: str, other: str, factor: int, tmp_path: Path
) -> None:
    perturb(Bert(BertConfig.tiny())).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: {**weights, other: factor * weights[one]})
    with pytest.raises(CheckpointError, match=names("twice", one, other)):
        allformers.load(tmp_path)


def test_berts_bias_may_be_there_twice_if_both_are_equal(tmp_path: Path) -> None:
    """Files from before 2024 have it under both names, and some have the second alone."""
    model, bias, copy = perturb(Bert(BertConfig.tiny())), "cls.predictions.bias", "cls.predictions.decoder.bias"
    model.save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: {**weights, copy: weights[bias].clone()})
    assert_same(allformers.load(tmp_path), model)
    edit_weights(tmp_path, lambda weights: {**weights, copy: 2 * weights[bias]})
    with pytest.raises(CheckpointError, match=names("twice", bias, copy)):
        allformers.load(tmp_path)
    model.save_pretrained(tmp_path)
    move(tmp_path, bias, copy)
    assert_same(allformers.load(tmp_path), model)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(entry.name, marks=() if entry.name in {"gpt2", "llama", "bert"} else pytest.mark.slow)
        for entry in READING_ORDER
        if entry.name != "vit"
    ],
)
def test_a_tied_weight_may_be_filed_under_the_heads_name_alone(name: str, tmp_path: Path) -> None:
    """`safetensors.torch.save_model` keeps the first of two names by the alphabet."""
    model_class = next(entry for entry in READING_ORDER if entry.name == name).load()
    form = model_class.checkpoint_format()
    (head,) = (row for row in form.head if row.tied_to is not None)
    (source,) = (row for row in form.weights if row.ours == head.tied_to)
    model = perturb(model_class(form.config_class.tiny(tie_embeddings=True)))
    model.save_pretrained(tmp_path)
    move(tmp_path, form.prefix + source.theirs, head.theirs)
    loaded = allformers.load(tmp_path)
    assert_same(loaded, model)
    assert loaded.unembedding.weight is loaded.token_embedding.weight


def test_an_embedding_that_is_not_tied_is_not_made_of_the_head(llama: tuple[Llama, Path]) -> None:
    _, folder = llama
    edit_config(folder, tie_word_embeddings=False)
    edit_weights(folder, lambda weights: {n: w for n, w in weights.items() if n != "lm_head.weight"})
    move(folder, "model.embed_tokens.weight", "lm_head.weight")
    with pytest.raises(CheckpointError, match=names("missing", "embed_tokens.weight")):
        allformers.load(folder)


# What is left out


@pytest.mark.parametrize("fields", [{"num_nextn_predict_layers": 1}, {"num_nextn_predict_layers": 2}, {}], ids=str)
@pytest.mark.parametrize("number", [2, 61], ids=["the next", "the reference's own"])
def test_layers_that_predict_one_more_token_are_left_out(fields: dict[str, int], number: int, tmp_path: Path) -> None:
    """Only where the configuration counts them: elsewhere a layer too many may be another model's."""
    model = perturb(DeepSeekV3(DeepSeekV3Config.tiny(num_layers=2)))
    model.save_pretrained(tmp_path)

    def add_layer(weights: Weights) -> Weights:
        last = {name: one for name, one in weights.items() if name.startswith("model.layers.1.")}
        added = {name.replace("layers.1.", f"layers.{number}."): 2 * one for name, one in last.items()}
        extra = {f"model.layers.{number}.{name}.weight": torch.ones(3) for name in ("eh_proj", "shared_head.head")}
        return {**weights, **added, **extra}

    edit_weights(tmp_path, add_layer)
    edit_config(tmp_path, **fields)
    if fields:
        with pytest.warns(UserWarning, match=rf"layer {number}\b.*model\.layers\.{number}\.") as warned:
            assert_same(allformers.load(tmp_path), model)
        assert len(warned) == 1
    else:
        with pytest.raises(CheckpointError, match=rf"unexpected: model\.layers\.{number}\."):
            allformers.load(tmp_path)
        edit_config(tmp_path, num_nextn_predict_layers="one")
        with pytest.raises(CheckpointError, match=names("num_nextn_predict_layers", "'one'")):
            allformers.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "sizes", "fields", "left_out"),
    [
        ("GPT2DoubleHeadsModel", GPT2_SIZES, {"num_labels": 1}, ["multiple_choice_head.summary.weight"]),
        ("GPT2ForSequenceClassification", GPT2_SIZES, {}, ["score.weight"]),
        ("LlamaForSequenceClassification", LLAMA_SIZES, {"tie_word_embeddings": True}, ["score.weight"]),
        ("BertForPreTraining", TEXT, {}, ["cls.seq_relationship.weight", "bert.pooler.dense.bias"]),
    ],
)
def test_heads_beside_the_language_head_are_left_out_aloud(
    name: str, sizes: dict[str, Any], fields: dict[str, Any], left_out: list[str], tmp_path: Path
) -> None:
    """Once, by their names; and the language model is what the reference makes of the file."""
    reference(name, sizes, **fields).save_pretrained(tmp_path)
    auto = transformers.AutoModelForMaskedLM if "Bert" in name else transformers.AutoModelForCausalLM
    theirs, given = auto.from_pretrained(tmp_path, attn_implementation="eager").eval(), token_ids()
    with pytest.warns(UserWarning, match=names(*left_out)) as warned:
        ours = allformers.load(tmp_path)
    assert len(warned) == 1
    with torch.no_grad():
        assert_close(ours(given), theirs(given).logits)


def test_a_value_head_is_left_out_aloud(llama: tuple[Llama, Path]) -> None:
    model, folder = llama
    edit_weights(folder, lambda weights: {**weights, "v_head.summary.weight": torch.ones(1, 64)})
    with pytest.warns(UserWarning, match=r"value head.*v_head\.summary\.weight"):
        assert_same(allformers.load(folder), model)


def test_a_bias_of_the_language_head_is_not_left_out(llama: tuple[Llama, Path]) -> None:
    """It would change what the model says."""
    _, folder = llama
    edit_weights(folder, lambda weights: {**weights, "lm_head.bias": torch.ones(256)})
    with pytest.raises(CheckpointError, match=r"unexpected: lm_head\.bias"):
        allformers.load(folder)


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForSequenceClassification"])
def test_a_decoder_without_its_head_is_refused_as_such(name: str, tmp_path: Path) -> None:
    reference(name, LLAMA_SIZES, tie_word_embeddings=False).save_pretrained(tmp_path)
    other = ["classification head"] if "Sequence" in name else []
    with pytest.raises(CheckpointError, match=names("lm_head.weight", "tie_word_embeddings", *other)) as refused:
        allformers.load(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["GPT2Model", "LlamaModel"])
def test_a_tied_decoder_needs_no_head(name: str, tmp_path: Path) -> None:
    model = reference(name, GPT2_SIZES if name == "GPT2Model" else LLAMA_SIZES, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ours, given = allformers.load(tmp_path), token_ids()
    with torch.no_grad():
        assert_close(ours(given), theirs(given).logits)


# Encoders


@pytest.mark.parametrize("prefixed", [False, True], ids=["as it is", "the other way"])
@pytest.mark.parametrize(
    ("name", "fields", "left_out"),
    [
        ("BertModel", {}, ["pooler.dense.weight"]),
        ("BertModel", {"add_pooling_layer": False}, []),
        ("BertForSequenceClassification", {}, ["classifier.weight", "pooler.dense.weight"]),
        pytest.param("BertForTokenClassification", {}, ["classifier.weight"], marks=pytest.mark.slow),
        pytest.param("BertForQuestionAnswering", {}, ["qa_outputs.weight"], marks=pytest.mark.slow),
        pytest.param("BertForNextSentencePrediction", {}, ["cls.seq_relationship.weight"], marks=pytest.mark.slow),
        ("ViTModel", {}, ["pooler.dense.weight"]),
        ("ViTModel", {"add_pooling_layer": False}, []),
        ("ViTForMaskedImageModeling", {}, ["decoder.0.weight", "embeddings.mask_token"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:.* leaves out ")
def test_a_checkpoint_without_the_models_head_gives_the_encoder(
    name: str, fields: dict[str, Any], left_out: list[str], prefixed: bool, tmp_path: Path
) -> None:
    made = getattr(transformers, name)
    config = made.config_class(**(TEXT if name.startswith("Bert") else IMAGES))
    config._attn_implementation = "eager"
    model = perturb(made(config, **fields).eval())
    model.save_pretrained(tmp_path / "theirs")
    prefix = f"{model.base_model_prefix}."
    if prefixed:  # the reference loads both
        edit_weights(
            tmp_path / "theirs",
            lambda ws: {(n.removeprefix(prefix) if n.startswith(prefix) else prefix + n): w for n, w in ws.items()},
        )
    if left_out:
        with pytest.warns(UserWarning, match="(?s)" + ".*".join(f"(?=.*{part})" for part in left_out)):
            ours = allformers.load(tmp_path / "theirs")
    else:
        ours = allformers.load(tmp_path / "theirs")
    encoder = getattr(model, model.base_model_prefix, model)
    given = token_ids() if name.startswith("Bert") else torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        theirs = encoder(given).last_hidden_state
        assert type(ours) is (BertEncoder if name.startswith("Bert") else ViTEncoder)
        assert_close(ours(given), theirs)
        ours.save_pretrained(tmp_path / "ours")
        assert_same(allformers.load(tmp_path / "ours"), ours)
        again = type(encoder).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
        assert torch.equal(again(given).last_hidden_state, theirs)
        assert_same(type(ours).from_huggingface(model), ours)


@pytest.mark.parametrize(("model_class", "encoder_class"), [(Bert, BertEncoder), (ViT, ViTEncoder)])
def test_a_model_and_its_encoder_share_checkpoints(model_class: Any, encoder_class: Any, tmp_path: Path) -> None:
    """The encoder is loaded from the model's, aloud; the model from the encoder's is refused, in a line."""
    config = model_class.checkpoint_format().config_class.tiny()
    model = perturb(model_class(config)).eval()
    model.save_pretrained(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"leaves out .* head"):
        encoder = encoder_class.from_pretrained(tmp_path / "model")
    assert type(encoder) is encoder_class
    assert [name for name, one in encoder.state_dict().items() if not torch.equal(one, model.state_dict()[name])] == []
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match=names(model_class.__name__, encoder_class.__name__)) as refused:
        model_class.from_pretrained(tmp_path / "encoder")
    assert "\n" not in str(refused.value)
    for folder, expected in (("model", model_class), ("encoder", encoder_class)):
        assert type(allformers.load(tmp_path / folder)) is expected
        (tmp_path / folder / "model.safetensors").unlink()
        assert load_config(tmp_path / folder) == (expected, config)  # by what config.json says
    for architectures in (["BertForPreTraining"], "absent"):
        edit_config(tmp_path / "encoder", architectures=architectures)
        assert load_config(tmp_path / "encoder")[0] is model_class


def test_segments_without_an_embedding_are_refused_by_name() -> None:
    model, ids = Bert(BertConfig.tiny()).eval(), torch.zeros(1, 4, dtype=torch.long)
    for segment in (2, -1):
        with pytest.raises(ValueError, match=names("segment", segment, "0 to 1")):
            model(ids, torch.full_like(ids, segment))
    model(ids, torch.ones_like(ids))


@pytest.mark.parametrize("size", [(20, 20), (24, 24), (12, 32), (8, 4), (10, 40)], ids=str)
def test_images_of_another_size_have_interpolated_positions(size: tuple[int, int]) -> None:
    """As the reference's, which has to be asked for it; patches that do not fill an image are refused."""
    model = reference("ViTForImageClassification", IMAGES)
    ours, images = ViT.from_huggingface(model), torch.randn(2, 3, *size)
    if size[0] % 4:
        with pytest.raises(ValueError, match=names("4 x 4", "10 x 40")):
            ours(images)
        return
    with torch.no_grad():
        assert_close(ours(images), model(images, interpolate_pos_encoding=True).logits)


# Which model it is


def test_a_class_is_loaded_from_a_file_that_names_none(tmp_path: Path) -> None:
    """Files from 2018 and 2019 have no model_type; where `architectures` says it, `load` knows it too."""
    model = perturb(GPT2(GPT2Config.tiny()))
    model.save_pretrained(tmp_path)
    for model_type in ("absent", None):
        edit_config(tmp_path, model_type=model_type)
        assert_same(GPT2.from_pretrained(tmp_path), model)
        assert_same(allformers.load(tmp_path), model)
    for architectures in (["ABCModel"], "absent", None, ["Gemma3ForConditionalGeneration"], 5, "GPT2Model", [None]):
        edit_config(tmp_path, architectures=architectures)
        assert_same(GPT2.from_pretrained(tmp_path), model)
        with pytest.raises(CheckpointError, match=names("model_type", "GPT2.from_pretrained", "Llama", "DeepSeekV3")):
            allformers.load(tmp_path)


@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_every_family_is_known_by_its_architecture(entry: Any, tmp_path: Path) -> None:
    form = entry.load().checkpoint_format()
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [form.architecture]}))
    assert load_config(tmp_path)[0].__name__ == entry.class_name


# Dtypes and devices


@pytest.mark.parametrize("all_of_them", [True, False], ids=["all", "some"])
def test_float8_without_scales_becomes_what_is_asked_for(all_of_them: bool, llama: tuple[Llama, Path]) -> None:
    model, folder = llama
    narrow = {name: one.to(torch.float8_e4m3fn) for name, one in load_file(folder / "model.safetensors").items()}
    edit_weights(folder, lambda ws: {n: narrow[n] if all_of_them or "_proj" in n else w for n, w in ws.items()})
    with pytest.raises(CheckpointError, match=names("float8_e4m3fn", "dtype=torch.bfloat16")):
        allformers.load(folder)
    loaded = allformers.load(folder, dtype=torch.float32)
    expected = narrow["model.layers.1.mlp.up_proj.weight"].float()
    assert torch.equal(loaded.blocks[1].mlp.up.weight, expected)
    assert not torch.equal(expected, model.blocks[1].mlp.up.weight)


@pytest.mark.parametrize(
    ("options", "culprits"),
    [
        ({"dtype": torch.int8}, ["dtype", "torch.int8"]),
        ({"dtype": torch.float8_e5m2}, ["dtype", "torch.float8_e5m2"]),
        ({"dtype": "float32"}, ["dtype", "'float32'"]),
        ({"device": "cuda:99"}, ["device", "'cuda:99'"]),
        ({"device": "abacus"}, ["device", "'abacus'"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else "".join(map(str, value.values())),
)
def test_a_dtype_or_device_that_cannot_be_is_refused_by_name(
    options: dict[str, Any], culprits: list[str], tmp_path: Path
) -> None:
    """Before anything is read."""
    with pytest.raises(CheckpointError, match="(?s)" + "".join(f"(?=.*{culprit})" for culprit in culprits)):
        allformers.GPT2.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
        ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.weight_packed", "compressed-tensors"),
    ],
)
def test_packed_integers_are_refused_by_their_method(name: str, method: str, llama: tuple[Llama, Path]) -> None:
    _, folder = llama
    edit_weights(folder, lambda weights: {**weights, name: torch.ones(3, 5, dtype=torch.int32)})
    with pytest.raises(CheckpointError, match=names(name, method)):
        allformers.load(folder)


def test_a_warning_shows_the_callers_line(tmp_path: Path) -> None:
    GPT2(GPT2Config.tiny()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"odd": 1}))
    for load in (allformers.load, GPT2.from_pretrained):
        with pytest.warns(UserWarning, match="odd") as seen:
            load(tmp_path)
        assert [warning.filename for warning in seen] == [__file__]
