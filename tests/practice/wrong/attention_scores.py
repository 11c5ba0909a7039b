WRONG = [
    (
        "return scores / math.sqrt(queries_of_heads.shape[-1])",
        "return scores",
        "the spread is 1 at any width",
        "the scores' spread is 1.92 in heads of width 4, 7.80 in heads of width 64",
    ),
    (
        "math.sqrt(queries_of_heads.shape[-1])",
        "math.sqrt(queries.shape[-1])",
        "the spread is 1 at any width",
        "the scores' spread is 0.68",
    ),
    (
        "math.sqrt(queries_of_heads.shape[-1])",
        "queries_of_heads.shape[-1]",
        "the spread is 1 at any width",
        "in heads of width 64",
    ),
    (
        "return scores / math.sqrt",
        "return scores * math.sqrt",
        "the spread is 1 at any width",
        "in heads of width 64",
    ),
    (
        "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq seq_k",
        "batch heads seq head_dim, batch other seq_k head_dim -> batch heads seq seq_k",
        "heads do not mix",
        "other numbers in head 1's piece of the keys, embed 4 to 7, changed head 0",
    ),
    ("split_heads(queries, heads)", "split_heads(queries, 3)", "shapes", "called with `queries` of batch 1, seq 3"),
    (
        "-> batch heads seq seq_k",
        "-> batch heads seq_k seq",
        "shapes",
        "has 5 on axis `seq`, expected 4",
    ),
    (
        "split_heads(keys, heads)",
        "keys.reshape(keys.shape[0], heads, keys.shape[1], -1)",
        "heads do not mix",
        "other numbers in head 1's piece of the keys, embed 4 to 7, changed head 0",
    ),
    (
        "return scores / math.sqrt(queries_of_heads.shape[-1])",
        "return (scores / math.sqrt(queries_of_heads.shape[-1])).softmax(dim=-1)",
        "a score belongs to one query and one key",
        "another key at seq_k 2 changed the score at heads",
    ),
]
