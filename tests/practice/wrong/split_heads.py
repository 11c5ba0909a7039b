WRONG = [
    ("(heads head_dim) -> batch heads seq", "(heads head_dim) -> batch seq heads", "shapes", "has 3 on axis `seq`"),
    ("(heads head_dim)", "(head_dim heads)", "values", "100 of 120 numbers differ"),
    (
        'rearrange(x, "batch seq (heads head_dim) -> batch heads seq head_dim", heads=heads)',
        "x.reshape(x.shape[0], heads, x.shape[1], x.shape[2] // heads)",
        "each position keeps its own numbers",
        "ones were put at seq 3 only; in the result they are at seq 0, 1, 4",
    ),
    ("heads=heads", "heads=3", "shapes", "called with `x` of batch 1, seq 7, embed 6; `heads` 6"),
    ("return rearrange(x,", "return rearrange(x.detach(),", "gradients", "no gradient reaches `x`"),
]
