WRITTEN = "queries = queries * (1 / math.sqrt(self.config.head_dim))"
WHERE = "dot products are divided by the root of head dim"
WRONG = [
    (
        WRITTEN,
        "queries = queries / math.sqrt(x.shape[-1])",
        WHERE,
        "in layer 0 and heads of head_dim 1, a query and a key have the dot product 1; its score is 0.2887, expected 1",
    ),
    (
        WRITTEN,
        "queries = queries / self.config.head_dim",
        WHERE,
        "heads of head_dim 4, a query and a key have the dot product 4; its score is 1, expected 2",
    ),
    (
        WRITTEN,
        f"keys = keys * (1 / math.sqrt(self.config.head_dim))\n        {WRITTEN}",
        WHERE,
        "its score is 1, expected 2",
    ),
    (WRITTEN, "queries = queries * math.sqrt(self.config.head_dim)", WHERE, "its score is 8, expected 2"),
    (
        WRITTEN,
        "queries = queries * (1 / math.sqrt(self.config.num_heads))",
        WHERE,
        "in layer 0 and heads of head_dim 1, a query and a key have the dot product 1; its score is 0.2887, expected 1",
    ),
    (
        "self.attention_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)",
        "self.attention_norm = nn.LayerNorm(config.embedding_dim, eps=1e-3)",
        "trained weights compute what they were trained to",
        "it differs from the trained model first in blocks.0, by",
    ),
]
