WRONG = [
    (
        "batch (kv_heads group) seq head_dim -> batch kv_heads group seq head_dim",
        "batch (group kv_heads) seq head_dim -> batch kv_heads group seq head_dim",
        "a head gathers what its own query finds",
        "changing head 1 of `query` changed what was gathered by heads 3",
    ),
    (
        "-> batch seq (kv_heads group head_dim)",
        "-> batch seq (group kv_heads head_dim)",
        "a head gathers what its own query finds",
        "changing head 1 of `query` changed what was gathered by heads 2",
    ),
    (
        "batch kv_heads group seq seq_k, batch kv_heads seq_k head_dim -> batch kv_heads group seq head_dim",
        "batch kv_heads group seq seq_k, batch group seq_k head_dim -> batch kv_heads group seq head_dim",
        "shapes",
        "mixed",
    ),
    (
        "queries, keys = rotate(queries, turned), rotate(keys, turned)",
        "queries, keys, values = rotate(queries, turned), rotate(keys, turned), rotate(values, turned)",
        "alone a position gets its own value",
        "a single position, turned as far as position 3, gets something else",
    ),
    (
        "queries, keys = rotate(queries, turned), rotate(keys, turned)",
        "queries = rotate(queries, turned)",
        "only distances count",
        "begun at position 50 and not at 0",
    ),
    (
        "queries, keys = rotate(queries, turned), rotate(keys, turned)",
        "pass",
        "only distances count",
        "turned or not turned, the result is the same",
    ),
    (
        "scores = torch.where(unseen, torch.finfo(scores.dtype).min, scores)",
        "pass",
        "a later position never changes an earlier one",
        "another vector at seq 4 changed the result",
    ),
    ("torch.finfo(scores.dtype).min", "-torch.inf", "values", "the result has nan at batch 1, seq 0"),
    ("math.sqrt(width)", "math.sqrt(x.shape[-1])", "values", "the result has"),
    (
        "torch.where(unseen,",
        "torch.where(blocked,",
        "a mask is for its own sequence",
        "beside another with another mask",
    ),
    (
        'self.value(x), "batch seq (kv_heads head_dim) -> batch kv_heads seq head_dim", head_dim=width',
        'self.key(x), "batch seq (kv_heads head_dim) -> batch kv_heads seq head_dim", head_dim=width',
        "a group shares its keys and values",
        "changing head 0 of `value` changed what was gathered by no head",
    ),
]
