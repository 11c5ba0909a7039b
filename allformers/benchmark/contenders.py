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

COMPILED = "allformers, compiled"

UNCHECKED = "allformers, unchecked"

ROOFLINE = "roofline"

RECOMPUTING = "allformers, recomputing"

PEERS = {"transformers, eager": "eager", "transformers, sdpa": "sdpa"}

COMPILED_PEER = "transformers, compiled"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that all contenders share.

    Attributes:
        device: that the models are on.
        dtype: of the weights, except in training, where they are float32.
        precision: of matrix products in training, as in a recipe.
        compile: True to compile all models for training and single calls, and transformers' for everything else. Our
            own steps are always compiled too.
    """

    device: str = "cpu"
    dtype: str = "float32"
    precision: str = "float32"
    compile: bool = False


def contenders(config: Any, seed: int = 0, settings: Settings = Settings()) -> dict[str, Any]:
    """Build our model and the reference's variants: the same random weights, a context for all rows, no dropout.

    Raises:
        ImportError: transformers is not installed.
    """
    torch.manual_seed(seed)
    ours = contender(OURS, config)
    models: dict[str, Any] = {OURS: ours}
    for name in peers_of(config):
        models[name] = contender(name, config)
        _copy_weights(ours, models[name])
    dtype = getattr(torch, settings.dtype)
    return {name: model.to(settings.device, dtype) for name, model in models.items()}


def _copy_weights(ours: Any, peer: Any) -> None:
    """Copy our weights to a peer, through a file where a peer's names in memory differ from those in its files."""
    if not ours.checkpoint_format().load_via_files:
        peer.load_state_dict(checkpoint_tensors(ours), strict=False)  # the tied head is not among them
        return
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        peer.load_state_dict(type(peer).from_pretrained(folder).state_dict())


def peers_of(config: Any) -> list[str]:
    """The variants of the reference that a model has: some models there cannot use PyTorch's fused attention (SDPA).

    Raises:
        ImportError: transformers is not installed.
    """
    peer = getattr(import_transformers(), class_for(config).checkpoint_format().architecture)
    return [name for name, attention in PEERS.items() if attention != "sdpa" or peer._supports_sdpa]


def contender(name: str, config: Any) -> Any:
    """Build one contender, with new weights.

    Raises:
        ImportError: the contender is transformers', and it is not installed.
    """
    model_class = class_for(config)
    longer = {"context_length": max(config.context_length, 1024)} if issubclass(model_class, Decoder) else {}
    config = dataclasses.replace(config, dropout=0.0, **longer)
    if name.startswith(OURS):
        model = prepare(model_class(config).eval())  # as the commands do
        if name == RECOMPUTING:
            recompute(model)
        return model
    transformers = import_transformers()
    fields = write_config(model_class.checkpoint_format(), config)
    fields |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    peer_config: Any = transformers.AutoConfig.for_model(**fields)
    peer_config._attn_implementation = PEERS[name]
    peer: Any = getattr(transformers, model_class.checkpoint_format().architecture)(peer_config)
    return peer.eval()


def import_transformers() -> Any:
    """Import transformers, with its messages and those of its libraries silenced.

    Raises:
        ImportError: it is not installed.
    """
    quiet_torchao()  # which transformers imports where it is installed
    try:
        import transformers
    except ImportError as error:
        raise ImportError('the benchmark needs transformers to compare with: pip install "allformers[test]"') from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def largest_difference(models: dict[str, Any], inputs: Tensor) -> float:
    """The largest difference between any peer's logits and ours, relative to the largest logit."""
    with torch.inference_mode():
        ours = models[OURS](inputs)
        peers = [models[name](inputs).logits for name in models if name in PEERS]
        return max(((peer - ours).abs().max() / ours.abs().max()).item() for peer in peers)


def with_packed(models: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The models, and ours once more with packed weights; on a GPU, where packing changes nothing, only the models."""
    if settings.device != "cpu":
        return models
    if PACKED not in models:
        shared = {id(one): one for one in models[OURS].parameters()}
        models[PACKED] = prepare(copy.deepcopy(models[OURS], shared), "packed")  # kept for the other rows
    return {OURS: models[OURS], PACKED: models[PACKED], **{name: models[name] for name in models if name in PEERS}}


def compiled_peer(models: dict[str, Any], steps: bool = False) -> Any:
    """The reference's last variant, compiled: the whole module, or with `steps` the forward pass of its `generate`."""
    best = [model for name, model in models.items() if name in PEERS][-1]
    if not steps:
        return torch.compile(best)
    best = copy.copy(best)
    best.forward = torch.compile(best.forward)
    return best


def smallest_preset(config: Any) -> Any:
    """The smallest preset of the same model."""
    return entry_for(config).sizes()[0].config
