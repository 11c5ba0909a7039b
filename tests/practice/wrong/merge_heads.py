WRONG = [
    (
        "(heads head_dim)",
        "(head_dim heads)",
        "the first head comes first",
        "ones were put into head 1 only; in a row of 12 they are at embed 1, 4, 7, 10",
    ),
    (
        'rearrange(x, "batch heads seq head_dim -> batch seq (heads head_dim)")',
        "x.reshape(x.shape[0], x.shape[2], -1)",
        "each position gets its own numbers",
        "all heads had ones at seq 3 only; in the result they are at seq",
    ),
    ("-> batch seq (heads head_dim)", "-> batch heads (seq head_dim)", "shapes", "has 3 on axis `seq`"),
    ("-> batch seq (heads head_dim)", "-> batch seq heads head_dim", "shapes", "has 4 axes, expected 3"),
    ("-> batch seq (heads head_dim)", "-> (batch seq) (heads head_dim)", "shapes", "has 2 axes, expected 3"),
]
