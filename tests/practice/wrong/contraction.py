WRONG = [
    ("-> batch seq seq_k", "-> batch seq_k seq", "shapes", "has 5 on axis `seq`, expected 3"),
    ("-> batch seq seq_k", "-> seq seq_k", "shapes", "has 2 axes, expected 3"),
    (
        "batch seq embed, batch seq_k embed -> batch",
        "batch seq embed, batch seq_k other -> batch",
        "only equal places are multiplied",
        "a query has a number at embed 1 only, a key at embed 2 only, and the score is 14",
    ),
    (
        "batch seq embed, batch seq_k embed -> batch",
        "batch seq embed, other seq_k embed -> batch",
        "sequences do not mix",
        "sequence 1 of 3 gets something else than it gets alone",
    ),
    (
        "einsum(queries, keys,",
        "einsum(queries / queries.norm(dim=-1, keepdim=True).clamp(min=0.5), keys,",
        "twice the query is twice the score",
        "with queries twice as long the scores are not twice as large",
    ),
    ('seq seq_k")\n', 'seq seq_k").softmax(dim=-1)\n', "twice the query is twice the score", "not twice as large"),
    ("embed, batch seq_k embed", "embed, batch seq embed", "shapes", "Error"),
]
