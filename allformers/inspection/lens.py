"""The logit lens, the logits of masked tokens, and the attention head of lowest entropy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from allformers.inspection import Activations
from allformers.inspection.compare import entropy
from allformers.inspection.figures import cell_label, shorten, table, top_predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from allformers.inputs.tokenizers import Tokenizer


def logit_lens(
    activations: Activations, model: Any, labels: Sequence[str], tokenizer: "Tokenizer", ylabel: str = "after"
) -> "Figure":
    """Draw the logit lens: the residual stream after each block, unembedded, as if the model stopped there.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    import torch

    stream = [*activations.by_layer("x"), activations.by_layer("")[-1]]
    with torch.inference_mode():
        predictions = [model.unembed(x[:1])[0].float().softmax(-1).max(dim=-1) for x in stream]
    probabilities = [[float(layer.values[position]) for layer in predictions] for position in range(len(labels))]
    token_ids = [[int(layer.indices[position]) for layer in predictions] for position in range(len(labels))]
    texts = [[cell_label(tokenizer, token) for token in row] for row in token_ids]
    columns = ["embed", *(f"block {layer}" for layer in range(len(stream) - 1))]
    return table(probabilities, texts, labels, columns, ylabel)


def label_lens(activations: Activations, model: Any, names: Sequence[str], top: int = 6) -> "Figure":
    """Draw the logit lens of a classifier: its labels if it stopped after each block; the last row is its answer."""
    import torch

    stream = [*activations.by_layer("x"), activations.by_layer("")[-1]]
    with torch.inference_mode():
        logits = torch.cat([model.classify(x[:1]) for x in stream])
    rows = ["embed", *(f"block {layer}" for layer in range(len(stream) - 1))]
    return top_predictions(logits, rows, lambda answer: shorten(names[answer]), top, "after")


def masked_token_logits(model: Any, token_ids: "Tensor", tokenizer: "Tokenizer") -> tuple[list[int], "Tensor"]:
    """Return the logits of masked tokens: those that are masked in the text, or else each in turn.

    Returns:
        The positions, and for each the logits of all tokens.

    Raises:
        ValueError: the tokenizer has no mask token.
    """
    import torch
    from einops import rearrange

    if tokenizer.mask_token_id is None:
        raise ValueError("the tokenizer has no mask token, such as [MASK]")
    special = getattr(tokenizer, "special_tokens", {})
    ids = token_ids[0].tolist()
    missing = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
    positions = missing or [position for position, token in enumerate(ids) if token not in special]
    logits = []
    with torch.inference_mode():
        for position in positions:
            masked = token_ids.clone()
            masked[0, position] = tokenizer.mask_token_id
            logits.append(model(masked)[0, position])
    if not logits:
        raise ValueError("the prompt is empty: there is no token to fill in")
    return positions, rearrange(logits, "seq vocab -> seq vocab")


def lowest_entropy_head(activations: Activations) -> tuple[int, int]:
    """Return the layer and head of lowest attention entropy, of those that attend to more than their own position."""
    lowest, found = float("inf"), (0, 0)
    for layer, weights in enumerate(activations.by_layer("attention.weights")):
        own = weights[0].diagonal(dim1=-2, dim2=-1).mean(-1)
        for head, bits in enumerate(entropy(weights[0].float()).mean(-1).tolist()):
            if bits < lowest and (own[head] < 0.5 or weights.shape[-1] == 1):
                lowest, found = bits, (layer, head)
    return found
