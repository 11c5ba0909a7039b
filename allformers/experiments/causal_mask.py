"""The causal mask: one pass for all questions of a text."""

import torch

from allformers.experiments.experiment import PROMPT, Experiment, encode, question_of
from allformers.inputs.tokenizers import ByteTokenizer
from allformers.inspection import capture, figures
from allformers.models.registry import load


@torch.no_grad()
def causal_mask() -> Experiment:
    """Why does the causal mask make training parallel, and generation one token at a time?"""
    model = load("bundled")
    token_ids = encode(PROMPT)
    length = token_ids.shape[1]
    one_pass = model(token_ids)[0]
    by_prefix = torch.stack([model(token_ids[:, : position + 1])[0, -1] for position in range(length)])
    difference = (one_pass - by_prefix).abs().max().item()

    influence = {}
    for name, hooks in {"with the mask": {}, "without": {"mask": torch.ones_like}}.items():
        with capture(model, "logits", hooks=hooks):
            unchanged = model(token_ids)[0]
            rows = []
            for position in range(length):
                changed_ids = token_ids.clone()
                changed_ids[0, position] = (changed_ids[0, position] + 1) % 256
                rows.append((model(changed_ids)[0] - unchanged).abs().amax(-1))
        influence[name] = torch.stack(rows)
    backwards = {name: float(rows.tril(-1).max()) for name, rows in influence.items()}

    figure = figures.heatmaps(
        {f"{name}: change of the logits": rows.sqrt() for name, rows in influence.items()},
        [figures.label(ByteTokenizer(), int(token)) for token in token_ids[0]],
        "position that answers",
        "token that was changed",
    )
    return Experiment(
        question=question_of(causal_mask),
        numbers={
            "positions": length,
            "largest difference between one pass and a pass for each prefix": difference,
            "largest change of an earlier answer, with the mask": backwards["with the mask"],
            "largest change of an earlier answer, without": backwards["without"],
        },
        conclusion=(
            f"One pass over {length} tokens gives the answers of {length} passes over its first one, two, three ... "
            f"tokens, to within {difference:.0e}: with the mask, changing a token changes no earlier answer "
            f"({backwards['with the mask']:.0f}), so all questions of a text can be asked at once. Without it, "
            f"earlier answers change by up to {backwards['without']:.1f}: they have seen what they should guess. The "
            "other side of it is generation: an answer can only be had once every token before it is known."
        ),
        figure=figure,
    )
