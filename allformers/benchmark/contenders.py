"""The contenders: this package's model and the reference's variants, all with the same weights."""

import copy
import dataclasses
import tempfile
from typing import Any

import torch
from torch import Tensor

from allformers.checkpoints.config_json import write_config
from allformers.checkpoints.loading import checkpoint_tensors
from allformers.generation.decoder import Decoder
from allformers.models.registry import class_for, entry_for
from allformers.speed.linear import prepare, quiet_torchao
from allformers.training.loop import recompute

OURS = "allformers"

PACKED = "allformers, packed"

STEPS = "allformers, compiled"

UNCHECKED = "allformers, unchecked"

FLOOR = "floor"

RECOMPUTING = "allformers, recomputing"

PEERS = {"transformers, eager": "eager", "transformers, sdpa": "sdpa"}

COMPILED = "transformers, compiled"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the contenders run on and in.

    Attributes:
        device: where.
        dtype: of the weights, except in training, where they are float32.
        precision: of matrix products in training, as in a recipe.
        compile: whether everybody's model is compiled, for training and single calls; and whether transformers' is
            otherwise. Our own steps are always compiled too.
    """

    device: str = "cpu"
    dtype: str = "float32"
    precision: str = "float32"
    compile: bool = False


def contenders(config: Any, seed: int = 0, setting: Setting = Setting()) -> dict[str, Any]:
    """Our model and the reference's variants, all with the same random weights, room for all rows, and no dropout.

    Raises:
        ImportError: transformers is not installed.
    """
    torch.manual_seed(seed)
    ours = contender(OURS, config)
    models: dict[str, Any] = {OURS: ours}
    for name in peers_of(config):
        models[name] = contender(name, config)
        _give_weights(ours, models[name])
    dtype = getattr(torch, setting.dtype)
    return {name: model.to(setting.device, dtype) for name, model in models.items()}


def _give_weights(ours: Any, peer: Any) -> None:
    """Make a peer the same model as ours, by way of a file where it names its weights otherwise than its files do."""
    if not ours.checkpoint_format().load_via_files:
        peer.load_state_dict(checkpoint_tensors(ours), strict=False)  # the tied head is not among them
        return
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        peer.load_state_dict(type(peer).from_pretrained(folder).state_dict())


def model_of(config: Any) -> Any:
    """The model that a configuration is for."""
    return class_for(config)


def peers_of(config: Any) -> list[str]:
    """The reference's variants that there are of a model: not every one can use PyTorch's fused attention.

    Raises:
        ImportError: transformers is not installed.
    """
    peer = getattr(import_transformers(), model_of(config).checkpoint_format().architecture)
    return [name for name, kind in PEERS.items() if kind != "sdpa" or peer._supports_sdpa]


def contender(name: str, config: Any) -> Any:
    """One of them, with fresh weights.

    Raises:
        ImportError: it is one of transformers', which is not installed.
    """
    model_class = model_of(config)
    room = {"context_length": max(config.context_length, 1024)} if issubclass(model_class, Decoder) else {}
    config = dataclasses.replace(config, dropout=0.0, **room)
    if name.startswith(OURS):
        model = prepare(model_class(config).eval())  # as the commands do
        if name == RECOMPUTING:
            recompute(model)
        return model
    transformers = import_transformers()
    description = write_config(model_class.checkpoint_format(), config)
    description |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    reference: Any = transformers.AutoConfig.for_model(**description)
    reference._attn_implementation = PEERS[name]
    peer: Any = getattr(transformers, model_class.checkpoint_format().architecture)(reference)
    return peer.eval()


def import_transformers() -> Any:
    """The reference, without what it and the libraries that it imports would say on the side."""
    quiet_torchao()  # which transformers imports where it is installed
    try:
        import transformers
    except ImportError as error:
        raise ImportError('the benchmark needs transformers to compare with: pip install "allformers[test]"') from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def largest_difference(models: dict[str, Any], given: Tensor) -> float:
    """The largest difference between any peer's logits and ours, relative to the largest logit."""
    with torch.inference_mode():
        ours = models[OURS](given)
        peers = [models[name](given).logits for name in models if name in PEERS]
        return max(((peer - ours).abs().max() / ours.abs().max()).item() for peer in peers)


def with_packed(models: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """The models, and ours once more, prepared for inference where that changes anything."""
    if setting.device != "cpu":
        return models
    if PACKED not in models:
        shared = {id(one): one for one in models[OURS].parameters()}
        models[PACKED] = prepare(copy.deepcopy(models[OURS], shared), "packed")  # kept for the other rows
    return {OURS: models[OURS], PACKED: models[PACKED], **{name: models[name] for name in models if name in PEERS}}


def compiled_peer(models: dict[str, Any], steps: bool = False) -> Any:
    """The reference's best variant, compiled; its steps too, which its own loop takes."""
    best = [model for name, model in models.items() if name in PEERS][-1]
    if not steps:
        return torch.compile(best)
    best = copy.copy(best)
    best.forward = torch.compile(best.forward)
    return best


def smallest(config: Any) -> Any:
    """The smallest preset of the same model."""
    return entry_for(config).sizes()[0].config
