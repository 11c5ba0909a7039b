WRONG = [
    ("keys > queries", "keys < queries", "no position sees a later one", "position 0 sees position 1"),
    (
        "keys > queries",
        "keys >= queries",
        "every position sees itself and all before",
        "position 0 does not see itself",
    ),
    ("keys > queries", "keys > queries + 1", "no position sees a later one", "position 0 sees position 1"),
    ("keys > queries", "(keys > queries).float()", "shapes", "has dtype float32, expected booleans"),
    ("torch.arange(seq)", "torch.arange(5)", "shapes", "has 5 on axis `seq_q`, expected 1"),
]
