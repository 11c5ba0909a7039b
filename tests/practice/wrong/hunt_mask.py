WRONG = [
    (
        ".tril()",
        ".tril(2)",
        "no prediction has seen its answer",
        "another token at seq 1 changed the logits at batch 0, seq 0",
    ),
    (".tril()", ".tril(-1)", "every position attends to itself", "position 0 does not attend to itself"),
    (".tril()", ".triu()", "no prediction has seen its answer", "another token at seq"),
    (
        "self.lower_triangle[seq_k - seq : seq_k, :seq_k]",
        "self.lower_triangle[seq_k - seq + 1 : seq_k + 1, :seq_k]",
        "shapes",
        "called with `token_ids`",
    ),
]
