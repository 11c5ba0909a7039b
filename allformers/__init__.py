"""Readable transformers: each model in one file, every axis named and checked, equal to Hugging Face's logits.

    >>> from allformers import GPT2, GPT2Config, Llama, load

Importing this package imports nothing else: a model is imported when its name is first used, and `load` imports the
model of the checkpoint.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from allformers.models.bert.bert import Bert, BertConfig, BertEncoder
    from allformers.models.deepseek_v3.deepseek_v3 import DeepSeekV3, DeepSeekV3Config
    from allformers.models.gemma.gemma import Gemma, GemmaConfig
    from allformers.models.gemma2.gemma2 import Gemma2, Gemma2Config
    from allformers.models.gemma3.gemma3 import Gemma3, Gemma3Config
    from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
    from allformers.models.llama.llama import Llama, LlamaConfig
    from allformers.models.mistral.mistral import Mistral, MistralConfig
    from allformers.models.mixtral.mixtral import Mixtral, MixtralConfig
    from allformers.models.qwen2.qwen2 import Qwen2, Qwen2Config
    from allformers.models.qwen3.qwen3 import Qwen3, Qwen3Config
    from allformers.models.vit.vit import ViT, ViTConfig, ViTEncoder

__version__ = "0.2.0"

__all__ = [
    "GPT2",
    "Bert",
    "BertConfig",
    "BertEncoder",
    "DeepSeekV3",
    "DeepSeekV3Config",
    "GPT2Config",
    "Gemma",
    "Gemma2",
    "Gemma2Config",
    "Gemma3",
    "Gemma3Config",
    "GemmaConfig",
    "Llama",
    "LlamaConfig",
    "Mistral",
    "MistralConfig",
    "Mixtral",
    "MixtralConfig",
    "Qwen2",
    "Qwen2Config",
    "Qwen3",
    "Qwen3Config",
    "ViT",
    "ViTConfig",
    "ViTEncoder",
    "load",
]


def load(name: "str | Path", **options: Any) -> Any:
    """Load a checkpoint of any model of the package; the class comes from its `config.json`, and from its weights.

    A BERT or ViT without the head that it was trained with, such as a sentence encoder, gives a `BertEncoder` or
    `ViTEncoder`.

    Args:
        name: a folder, or a model's name on the Hugging Face hub.
        options: `revision`, `dtype`, `device`, as for the model's `from_pretrained`.

    Raises:
        CheckpointError: there is no such checkpoint, it is broken, or its architecture is not supported.
    """
    from allformers.models.registry import load

    return load(name, **options)


def __getattr__(name: str) -> Any:
    """Import a model or its configuration at the first use of its name (PEP 562)."""
    if name in __all__:
        from allformers.models.registry import READING_ORDER

        model = name.removesuffix("Config").removesuffix("Encoder")
        entry = next(entry for entry in READING_ORDER if entry.class_name == model)
        found = getattr(entry.import_module(), name)
        globals()[name] = found  # so that each name is looked up once
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List all names, including models that have not been imported yet."""
    return sorted({*globals(), *__all__})
