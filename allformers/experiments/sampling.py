"""Temperature, top-k and top-p, and what they leave of a distribution."""

import torch

from allformers.experiments.experiment import Experiment, encode, question_of
from allformers.generation.sampling import apply_temperature, keep_top_k, keep_top_p
from allformers.inputs.tokenizers import ByteTokenizer
from allformers.inspection import figures
from allformers.inspection.compare import entropy
from allformers.models.registry import load


@torch.no_grad()
def sampling() -> Experiment:
    """What do temperature, top-k and top-p do to a distribution?"""
    model = load("bundled")
    logits = model(encode("The "))[:, -1]
    settings = {
        "as it is": logits,
        "temperature 0.5": apply_temperature(logits, 0.5),
        "temperature 1.5": apply_temperature(logits, 1.5),
        "top-k 5": keep_top_k(logits, 5),
        "top-p 0.8": keep_top_p(logits, 0.8),
    }
    order = logits[0].argsort(descending=True)
    probabilities = {name: scores.float().softmax(-1)[0][order] for name, scores in settings.items()}
    bits = {name: float(entropy(row)) for name, row in probabilities.items()}
    kept = {name: int((row > 0).sum()) for name, row in probabilities.items()}
    labels = [figures.label(ByteTokenizer(), int(token)) for token in order[:16]]
    figure = figures.bar_plots({name: row[:16].tolist() for name, row in probabilities.items()}, labels, "probability")
    return Experiment(
        question=question_of(sampling),
        numbers={"entropy in bits": bits, "tokens that can be drawn": kept},
        conclusion=(
            f"After 'The ' the model is unsure by {bits['as it is']:.1f} bits. Temperature changes how unsure "
            f"({bits['temperature 0.5']:.1f} bits at 0.5, {bits['temperature 1.5']:.1f} at 1.5) and leaves all "
            f"{kept['temperature 0.5']} tokens possible, in the same order; top-k 5 leaves {kept['top-k 5']} possible "
            f"and top-p 0.8 leaves {kept['top-p 0.8']}, and what the others had is shared out in proportion."
        ),
        figure=figure,
    )
