WRONG = [
    (
        "batch seq (kv_heads group head_dim) -> batch kv_heads group seq head_dim",
        "batch seq (group kv_heads head_dim) -> batch kv_heads group seq head_dim",
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
        "queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)",
        "queries, keys, values = (apply_rope(one, cos, sin) for one in (queries, keys, values))",
        "alone a position gets its own value",
        "a single token at position 3 gets something else",
    ),
    (
        "queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)",
        "queries = apply_rope(queries, cos, sin)",
        "only distances count",
        "begun at position 50 and not at 0",
    ),
    (
        "queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)",
        "pass",
        "only distances count",
        "rotated or not, the result is the same",
    ),
    (
        "scores = torch.where(grouped_mask, scores, torch.finfo(scores.dtype).min)",
        "pass",
        "a later position never changes an earlier one",
        "another vector at seq 4 changed the result",
    ),
    ("torch.finfo(scores.dtype).min", "-torch.inf", "values", "the result has nan at batch 1, seq 0"),
    ("math.sqrt(self.config.head_dim)", "math.sqrt(x.shape[-1])", "values", "the result has"),
    (
        "torch.where(grouped_mask,",
        "torch.where(mask,",
        "a mask is for its own sequence",
        "beside another with another mask",
    ),
    (
        "rearrange(self.value(x),",
        "rearrange(self.key(x),",
        "a group shares its keys and values",
        "changing head 0 of `value` changed what was gathered by no head",
    ),
]
