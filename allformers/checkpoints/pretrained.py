"""What every model with a table can do: `from_pretrained`, `from_huggingface`, `save_pretrained`."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.atomic import replacing
from allformers.checkpoints.config_json import read_config, write_config
from allformers.checkpoints.hub import locate, read_json, require
from allformers.checkpoints.loading import build, checkpoint_tensors
from allformers.checkpoints.tables import Format
from allformers.checkpoints.tensors import in_memory, open_weights, save_tensors


class Checkpointed(nn.Module):
    """What a model with a `format` and a `config` can do: load and save, with nothing but its tables."""

    format: ClassVar[Format]
    config: Any

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Load a checkpoint.

        The model is built without memory and each tensor is read straight into its place, so that loading safetensors
        takes little more memory than the weights themselves. The model is returned in evaluation mode.

        Args:
            name: a folder, "bundled" for the model that comes with this package, or a model's name on the Hugging
                Face hub ("gpt2", "distilgpt2"), which is then downloaded once and kept in the hub's own cache.
            revision: a branch, tag or commit on the hub.
            dtype: of the weights; if None, the widest in the checkpoint.
            device: where to put them; if None, the CPU.

        Raises:
            CheckpointError: the folder or the model does not exist, a file is missing, truncated or unsafe, the
                configuration is of another architecture, or weights are missing, surplus or misshapen.
        """
        find = locate(name, revision)
        config = read_config(cls.format, read_json(require(find, "config.json", name)), where=f"{name}/config.json")
        return build(cls, config, open_weights(find, name), dtype, device, where=str(name))

    @classmethod
    def from_huggingface(cls, model: Any) -> Self:
        """Copy a live transformers model, for instance a `GPT2LMHeadModel`. The two share no memory.

        Raises:
            CheckpointError: it is of another architecture, or its weights do not fit.
        """
        where = type(model).__name__
        if cls.format.from_disk:
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                return cls.from_pretrained(folder, device=next(model.parameters()).device)
        config = read_config(cls.format, model.config.to_dict(), where=f"{where}.config")
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        stored = {name: in_memory(tensor) for name, tensor in state.items()}
        device = next(iter(state.values())).device if state else None
        return build(cls, config, stored, None, device, where=where)

    def example(self, batch: int, seq: int, device: torch.device | str) -> Tensor:
        """Something that the model can read, to see what it makes of it: token ids, all zero."""
        return torch.zeros(batch, seq, dtype=torch.long, device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` and transformers load with the same logits.

        Each file is written beside its place and then moved there, so that a failure leaves what was there before.
        """
        write_pretrained(folder, self.format, self.config, checkpoint_tensors(self))


def write_pretrained(folder: str | Path, form: Format, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint from the tensors that `checkpoint_tensors` gives.

    Raises:
        CheckpointError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"cannot save to {folder}: it is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    description = write_config(form, config)
    description["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    with (
        replacing(folder / "config.json") as config_file,
        replacing(folder / "model.safetensors") as weights_file,
    ):
        config_file.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, weights_file)
