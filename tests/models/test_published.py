"""Published checkpoints, as they lie on the hub: logits of one sentence are the reference's, and the recorded ones.

    pytest -n 0 -m network tests/models/test_published.py

asks the hub for some 3 GB. Each checkpoint is compared with what the installed reference makes of the same files, and
with `golden/published-*.json` where there is one. No record exists yet: whoever can reach the hub makes them by adding
`--record-published`, once the comparison with the reference holds.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers

import allformers

GOLDEN = Path(__file__).parent / "golden"
SENTENCE = "The quick brown fox jumps over the lazy dog, and"
BAR = 5e-5
"""Relative to the largest logit, in float32: what some thirty layers of sums may add up; deep models need the room."""


@pytest.mark.network
@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-0.6B"])
@torch.no_grad()
def test_a_published_checkpoint_says_what_the_reference_says(name: str, request: pytest.FixtureRequest) -> None:
    token_ids = transformers.AutoTokenizer.from_pretrained(name)(SENTENCE, return_tensors="pt").input_ids
    logits = allformers.load(name, dtype=torch.float32)(token_ids)[0]
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    theirs = reference(token_ids).logits[0]
    assert (logits - theirs).abs().max() <= BAR * theirs.abs().max()
    assert torch.equal(logits.argmax(-1), theirs.argmax(-1))

    path = GOLDEN / f"published-{name.rpartition('/')[2]}.json"
    if request.config.getoption("--record-published"):
        best = logits[-1].topk(20)
        record = {"name": name, "sentence": SENTENCE, "token_ids": token_ids[0].tolist()}
        record |= {"best": best.indices.tolist(), "logits": best.values.tolist(), "torch": torch.__version__}
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        assert token_ids[0].tolist() == record["token_ids"]
        recorded = torch.tensor(record["logits"])
        assert (logits[-1, record["best"]] - recorded).abs().max() <= BAR * theirs.abs().max()
