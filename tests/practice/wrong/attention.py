WRONG = [
    (
        "scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)",
        "pass",
        "a later position never changes an earlier one",
        "another vector at seq 4 changed the result at batch",
    ),
    (
        "torch.where(mask, scores, torch.finfo(scores.dtype).min)",
        "torch.where(mask, scores, 0.0)",
        "a later position never changes an earlier one",
        "changed the result at batch",
    ),
    (
        "torch.where(mask, scores, torch.finfo(scores.dtype).min)",
        "torch.where(mask, torch.finfo(scores.dtype).min, scores)",
        "a later position never changes an earlier one",
        "another vector at seq 4",
    ),
    ("scores = scores / math.sqrt(queries.shape[-1])", "pass", "values", "the result has"),
    ("math.sqrt(queries.shape[-1])", "math.sqrt(x.shape[-1])", "values", "the result has"),
    (
        "F.softmax(scores, dim=-1)",
        "F.softmax(scores, dim=-2)",
        "a later position never changes an earlier one",
        "seq 4",
    ),
    (
        "F.softmax(scores, dim=-1)",
        "F.softmax(scores, dim=1)",
        "a later position never changes an earlier one",
        "another vector at seq 4",
    ),
    (
        "(qkv heads head_dim) -> qkv",
        "(heads qkv head_dim) -> qkv",
        "what a position gets is a mean of values",
        "but what seq",
    ),
    (
        "batch seq (heads head_dim)",
        "batch seq (head_dim heads)",
        "what a position gets is a mean of values",
        "gives every position the same vector",
    ),
    ("-> batch seq (heads head_dim)", "-> batch seq heads head_dim", "shapes", "in line"),
    (
        "return self.output(merged)",
        "return merged",
        "what a position gets is a mean of values",
        "the values, gives every position the same vector",
    ),
    (
        "        self.output = nn.Linear(config.embedding_dim, config.embedding_dim)",
        "        self.out = nn.Linear(config.embedding_dim, config.embedding_dim)",
        "shapes",
        "it has no `output.weight`",
    ),
]
