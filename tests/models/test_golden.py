"""The bundled model says today what it said when it was recorded, whatever version of anything is installed.

The record is `golden/bundled.safetensors`: float64 logits of two texts, and what follows the first, greedily. It was
made by `pytest -n 0 tests/models/test_golden.py --record-golden`, at a time when every comparison with the reference
held. To make it anew is to say that the model should answer otherwise.
"""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from allformers import GPT2, load

GOLDEN = Path(__file__).parent / "golden" / "bundled.safetensors"
TEXTS = ("The for statement", "class Né:")


def ids(text: str) -> torch.Tensor:
    """A text as the bundled model reads it: bytes."""
    return torch.tensor([list(text.encode())])


@torch.no_grad()
def said() -> tuple[dict[str, torch.Tensor], str]:
    """The logits of each text, and 100 bytes that follow the first."""
    model: GPT2 = load("bundled", dtype=torch.float64)
    written = model.generate(ids(TEXTS[0]), max_new_tokens=100, temperature=0)
    return {text: model(ids(text))[0] for text in TEXTS}, bytes(written[0].tolist()).decode()


def test_the_bundled_model_says_what_it_said(request: pytest.FixtureRequest) -> None:
    logits, written = said()
    if request.config.getoption("--record-golden"):
        save_file(logits, GOLDEN, metadata={"written": written, "torch": torch.__version__})
    with safe_open(GOLDEN, "pt") as golden:
        assert set(golden.keys()) == set(TEXTS)
        for text in TEXTS:
            expected = golden.get_tensor(text)
            assert expected.dtype == logits[text].dtype == torch.float64
            assert (logits[text] - expected).abs().max() <= 1e-10 * expected.abs().max(), text
        assert written == golden.metadata()["written"]
