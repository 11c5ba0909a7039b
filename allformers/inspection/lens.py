"""The logit lens, masked tokens filled in, and the most focused head: a model's answers, and where it attends."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from allformers.inspection import Seen
from allformers.inspection.compare import entropy
from allformers.inspection.figures import cell, likeliest, short, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from allformers.inputs.tokenizers import Tokenizer


def logit_lens(seen: Seen, model: Any, labels: Sequence[str], tokenizer: "Tokenizer", of: str = "after") -> "Figure":
    """The logit lens: the residual stream after each block, unembedded, as if the model stopped there.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    import torch

    stream = [*seen.by_layer("x"), seen.by_layer("")[-1]]
    with torch.inference_mode():
        best = [model.unembed(x[:1])[0].float().softmax(-1).max(dim=-1) for x in stream]
    probabilities = [[float(layer.values[place]) for layer in best] for place in range(len(labels))]
    texts = [[cell(tokenizer, int(layer.indices[place])) for layer in best] for place in range(len(labels))]
    columns = ["embed", *(f"block {layer}" for layer in range(len(stream) - 1))]
    return table(probabilities, texts, labels, columns, of)


def label_lens(seen: Seen, model: Any, names: Sequence[str], top: int = 6) -> "Figure":
    """The logit lens of a classifier: its labels if it stopped after each block; the last row is its answer."""
    import torch

    stream = [*seen.by_layer("x"), seen.by_layer("")[-1]]
    with torch.inference_mode():
        logits = torch.cat([model.classify(x[:1]) for x in stream])
    rows = ["embed", *(f"block {layer}" for layer in range(len(stream) - 1))]
    return likeliest(logits, rows, lambda answer: short(names[answer]), top, "after")


def fill_in(loaded: Any, given: "Tensor", tokenizer: "Tokenizer") -> tuple[list[int], "Tensor"]:
    """The logits of masked tokens: those that are masked in the text, or else each in turn.

    Returns:
        The places, and for each the scores of all tokens.

    Raises:
        ValueError: the tokenizer has no token that says: missing.
    """
    import torch
    from einops import rearrange

    if tokenizer.mask_token_id is None:
        raise ValueError("the model's tokenizer has no token for what is missing, such as [MASK], to look at")
    special = getattr(tokenizer, "special_tokens", {})
    ids = given[0].tolist()
    missing = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
    places = missing or [place for place, token in enumerate(ids) if token not in special]
    found = []
    with torch.inference_mode():
        for place in places:
            asked = given.clone()
            asked[0, place] = tokenizer.mask_token_id
            found.append(loaded(asked)[0, place])
    if not found:
        raise ValueError("there is nothing to look at: the prompt is empty")
    return places, rearrange(found, "seq vocab -> seq vocab")


def most_focused(seen: "Seen") -> tuple[int, int]:
    """The layer and head whose attention is least spread out, of those that attend to more than their own position."""
    best, place = float("inf"), (0, 0)
    for layer, weights in enumerate(seen.by_layer("attention.weights")):
        own = weights[0].diagonal(dim1=-2, dim2=-1).mean(-1)
        for head, bits in enumerate(entropy(weights[0].float()).mean(-1).tolist()):
            if bits < best and (own[head] < 0.5 or weights.shape[-1] == 1):
                best, place = bits, (layer, head)
    return place
