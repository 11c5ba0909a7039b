WRONG = [
    (
        ".triu(1)",
        ".triu(3)",
        "no prediction has seen its answer",
        "another token at seq 1 changed the logits at batch 0, seq 0",
    ),
    (".triu(1)", ".triu(0)", "every position sees itself", "position 0 does not see itself"),
    (".triu(1)", ".tril(-1)", "no prediction has seen its answer", "another token at seq"),
    ("self.later[start:stop, :stop]", "self.later[start + 1 : stop + 1, :stop]", "shapes", "called with `token_ids`"),
]
