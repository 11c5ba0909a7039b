"""Changes to a model's source that break it: each is made, and the bundled model is run with it.

The change is in GPT-2's file or in the tables of its checkpoints.

/// break | Leave out the mask
    replace: 'scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)'
    with: 'scores = scores'
What a reader might expect.
///
"""

import dataclasses
import functools
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

import torch

from allformers.checkpoints import CheckpointError
from allformers.inputs.tokenizers import ByteTokenizer
from docs.engine.measure import loss_of
from docs.engine.record import WalkError

MODULES = ("allformers.models.gpt2.gpt2", "allformers.models.gpt2.checkpoint")
PROMPT = "The for statement"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a change: the loss and a generated text, or an error.

    Attributes:
        error: the message of the error, or nothing if it ran.
        loss: in nats a token, on passages that the bundled model has not seen.
        written: what it goes on with after `PROMPT`, taking the likeliest token each time.
    """

    error: str = ""
    loss: float = 0.0
    written: str = ""


@functools.cache
def outcome(replace: str = "", by: str = "") -> Outcome:
    """Change the model's source in one place and run the bundled weights through it; without a change, as it is.

    Raises:
        WalkError: the source does not have what should be replaced, or has it more than once.
    """
    paths = {name: Path(importlib.util.find_spec(name).origin) for name in MODULES}  # type: ignore[union-attr, arg-type]
    sources = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    name = next((name for name, source in sources.items() if replace in source), MODULES[0])
    if replace:
        count = sum(source.count(replace) for source in sources.values())
        if count != 1:
            raise WalkError(f"the source has {replace!r} {count} times, expected once")
    changed = types.ModuleType(f"{name}_changed")
    sys.modules[changed.__name__] = changed  # dataclasses look their module up
    try:
        source = sources[name].replace(replace, by) if replace else sources[name]
        exec(compile(source, str(paths[name]), "exec"), changed.__dict__)
        model_class = changed.GPT2
        if name != MODULES[0]:  # tables: the model is as it is, and loads with them
            tables = {"checkpoint_format": classmethod(lambda cls: changed.FORMAT)}
            model_class = type("GPT2", (model_class,), tables)
        return _run(model_class)
    except (TypeError, ValueError, RuntimeError, CheckpointError) as error:
        if not replace:
            raise
        return Outcome(error=f"{type(error).__name__}: {error}")
    finally:
        del sys.modules[changed.__name__]


def _run(model_class: Any) -> Outcome:
    torch.manual_seed(0)
    model = model_class.from_pretrained("bundled").eval()
    prompt = torch.tensor([ByteTokenizer().encode(PROMPT)])
    loss = loss_of(model)
    written = model.generate(prompt, max_new_tokens=60, temperature=0)[0].tolist()
    return Outcome(loss=loss, written=re.sub(r"[^\x20-\x7e]", "�", ByteTokenizer().decode(written)))
