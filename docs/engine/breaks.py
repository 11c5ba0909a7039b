"""What really happens when one thing in a model's source is wrong: it is changed, and the bundled model is run.

/// break | Forget the causal mask
    replace: 'scores = torch.where(blocked, torch.finfo(scores.dtype).min, scores)'
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

MODULE = "allformers.models.gpt2.gpt2"
PROMPT = "The for statement"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a change.

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
    path = Path(importlib.util.find_spec(MODULE).origin)  # type: ignore[union-attr, arg-type]
    source = path.read_text(encoding="utf-8")
    if replace:
        if source.count(replace) != 1:
            raise WalkError(f"the source has {replace!r} {source.count(replace)} times, expected once")
        source = source.replace(replace, by)
    changed = types.ModuleType(f"{MODULE}_changed")
    sys.modules[changed.__name__] = changed  # dataclasses look their module up
    try:
        exec(compile(source, str(path), "exec"), changed.__dict__)
        return _run(changed.GPT2)
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
