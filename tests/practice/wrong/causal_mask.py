WRONG = [
    ("keys <= queries", "keys > queries", "no position attends to a later one", "position 0 may attend to position 1"),
    (
        "keys <= queries",
        "keys < queries",
        "every position attends to itself and all before",
        "position 0 may not attend to itself",
    ),
    (
        "keys <= queries",
        "keys <= queries + 1",
        "no position attends to a later one",
        "position 0 may attend to position 1",
    ),
    (
        "keys <= queries",
        "keys == queries",
        "every position attends to itself and all before",
        "position 1 may not attend to position 0",
    ),
    ("keys <= queries", "(keys <= queries).float()", "shapes", "has dtype float32, expected booleans"),
    ("torch.arange(seq)", "torch.arange(5)", "shapes", "has 5 on axis `seq`, expected 1"),
]
