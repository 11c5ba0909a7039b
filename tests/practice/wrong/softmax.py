WRONG = [
    (
        "(scores - highest).exp()",
        "scores.exp()",
        "large scores do not overflow",
        "the scores 1000 and 1001 got the weights nan and nan",
    ),
    (
        'reduce(exponentials, "batch heads seq seq_k -> batch heads seq 1", "sum")',
        'reduce(exponentials, "batch heads seq seq_k -> batch heads 1 seq_k", "sum")',
        "each row sums to one",
        "the weights at batch",
    ),
    ("return exponentials / total", "return exponentials", "each row sums to one", "add up to"),
    ("return exponentials / total", "return exponentials / (total + 1e-4)", "values", "the largest difference"),
    (
        'reduce(exponentials, "batch heads seq seq_k -> batch heads seq 1", "sum")',
        'reduce(exponentials, "batch heads seq seq_k -> batch heads 1 1", "sum")',
        "each row sums to one",
        "the weights at batch",
    ),
    ("scores - highest", "scores - highest.max()", "large scores do not overflow", "the scores -1001 and -1000 got"),
]
