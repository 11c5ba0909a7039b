WRONG = [
    (
        "probabilities.cumsum(dim=-1) - probabilities",
        "probabilities.cumsum(dim=-1)",
        "the token that crosses the border stays",
        "of the probabilities 0.15 0.5 0.05 0.3, 0.5 stayed with `top_p` 0.7: together 0.5",
    ),
    (
        "    before[:, 0] = 0.0\n",
        "    before = probabilities.cumsum(dim=-1)\n",
        "the token that crosses the border stays",
        "0.5 stayed with `top_p` 0.7: together 0.5",
    ),
    (
        "before >= top_p",
        "probabilities < 1 - top_p",
        "the token that crosses the border stays",
        "none stayed with `top_p` 0.3: together 0",
    ),
    (
        "descending=True",
        "descending=False",
        "no more stay than it takes",
        "stayed with `top_p` 0.3; without",
    ),
    (
        "return torch.empty_like(logits).scatter(-1, ranked.indices, kept)",
        "return kept",
        "what stays is as it was",
        "the logit kept at batch",
    ),
    (
        "return torch.empty_like(logits).scatter(-1, ranked.indices, kept)",
        "return kept.gather(-1, ranked.indices)",
        "what stays is as it was",
        "the logit kept at batch",
    ),
    (
        "F.softmax(ranked.values, dim=-1)",
        "ranked.values",
        "no more stay than it takes",
        "0.15 0.5 0.05 0.3 stayed with `top_p` 0.3; without 0.05 there are 0.95, which is enough",
    ),
    ("    if top_p >= 1:\n        return logits\n", "", "at 1 nothing is ruled out", "tokens were ruled out"),
]
