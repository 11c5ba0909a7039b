WRONG = [
    (
        "rope_cos_sin(torch.arange(seq), default_inv_freq(self.config.head_dim, self.config.rope_theta))",
        "torch.ones(seq, self.config.head_dim // 2), torch.zeros(seq, self.config.head_dim // 2)",
        "the order of tokens matters",
        "the logits after the tokens 1 2 3 4 and after 3 1 2 4 are the same",
    ),
    (
        "rearrange(causal_mask(seq),",
        "rearrange(causal_mask(seq) | True,",
        "a later token never changes an earlier prediction",
        "another token at seq 4 changed the logits",
    ),
    (
        "        if config.tie_embeddings:\n",
        "        if True:\n",
        "embeddings are tied where the configuration says so",
        "with `tie_embeddings` False, `unembedding.weight` and `token_embedding.weight` are one tensor",
    ),
    (
        "        if config.tie_embeddings:\n            self.unembedding.weight = self.token_embedding.weight\n",
        "",
        "embeddings are tied where the configuration says so",
        "with `tie_embeddings` True, `unembedding.weight` and `token_embedding.weight` are two tensors",
    ),
    (
        "rope_cos_sin(torch.arange(seq),",
        "rope_cos_sin(torch.arange(self.config.context_length)[:seq],",
        "a text may be longer than any before",
        "27 tokens, with a `context_length` of 9",
    ),
    (
        "default_inv_freq(self.config.head_dim, self.config.rope_theta)",
        "default_inv_freq(self.config.head_dim, 50.0)",
        "it writes what the reference writes",
        "that it wrote is",
    ),
    (
        "default_inv_freq(self.config.head_dim,",
        "default_inv_freq(self.config.embedding_dim,",
        "shapes",
        "`pair`",
    ),
    ("self.unembedding(self.final_norm(x))", "self.unembedding(x)", "it writes what the reference writes", "token"),
    (
        "x_mid + self.mlp(self.mlp_norm(x_mid))",
        "x_mid + self.mlp(self.mlp_norm(x))",
        "it writes what the reference writes",
        "the reference's is",
    ),
    (
        "x = block(x, cos, sin, mask)",
        "x = x + block(x, cos, sin, mask)",
        "it writes what the reference writes",
        "token",
    ),
    (
        "nn.Linear(config.embedding_dim, config.vocab_size, bias=False)",
        "nn.Linear(config.embedding_dim, config.vocab_size)",
        "shapes",
        "nobody asked for `unembedding.bias`",
    ),
]
