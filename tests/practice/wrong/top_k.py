WRITTEN = "return torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)"
WRONG = [
    (
        WRITTEN,
        "return logits.masked_fill(logits < kept.values[:, -1:], -torch.inf)",
        "as many stay as were asked for",
        "of the logits 0 2 1 2 2 0 there stay 3 with `top_k` 1",
    ),
    (
        WRITTEN,
        "return torch.zeros_like(logits).scatter(-1, kept.indices, kept.values)",
        "as many stay as were asked for",
        "there stay 6 with `top_k` 1",
    ),
    (WRITTEN, "return kept.values", "shapes", "`vocab`"),
    (
        "logits.topk(min(top_k, logits.shape[-1]), dim=-1)",
        "logits.topk(top_k, dim=-1)",
        "shapes",
        "`logits` of batch 4, vocab 3; `top_k` 50",
    ),
    (
        "logits.topk(min(top_k, logits.shape[-1]), dim=-1)",
        "logits.topk(min(top_k, logits.shape[-1]), dim=-1, largest=False)",
        "those that stay are the likeliest",
        "with `top_k` 3",
    ),
    (
        "logits.topk(min(top_k, logits.shape[-1]), dim=-1)",
        "logits.softmax(dim=-1).topk(min(top_k, logits.shape[-1]), dim=-1)",
        "what stays is as it was",
        "the logit kept at batch",
    ),
    (
        WRITTEN,
        "logits[:] = torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)\n    return logits",
        "values",
        "it changes its argument `logits` in place",
    ),
]
