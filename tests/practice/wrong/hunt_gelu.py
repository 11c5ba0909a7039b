WRITTEN = 'F.gelu(self.up(x), approximate="tanh")'
WHERE = "the activation is the one that gpt2 was trained with"
WRONG = [
    (WRITTEN, "F.relu(self.up(x))", WHERE, "the MLP's activation makes 2.000000 of 2, expected 1.954598"),
    (WRITTEN, "F.silu(self.up(x))", WHERE, "the MLP's activation makes 1.761594 of 2, expected 1.954598"),
    (
        WRITTEN,
        "(lambda up: up * torch.sigmoid(1.702 * up))(self.up(x))",
        WHERE,
        "the MLP's activation makes",
    ),
    (
        WRITTEN,
        "(lambda up: 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.45 * up**3))))(self.up(x))",
        WHERE,
        "of 2, expected 1.954598",
    ),
    (
        "self.mlp_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)",
        "self.mlp_norm = nn.LayerNorm(config.embedding_dim, eps=1e-3)",
        "trained weights compute what they were trained to",
        "it differs from the trained model first in blocks.0, by",
    ),
]
