WRONG = [
    (
        "ACTIVATIONS[config.activation]",
        'nn.GELU(approximate="tanh")',
        "the activation is the one that the configuration names",
        'with activation="gelu" the MLP\'s non-linearity makes 1.954598 of 2, expected 1.954500',
    ),
    (
        "ACTIVATIONS[config.activation]",
        'ACTIVATIONS["gelu"]',
        "the activation is the one that the configuration names",
        'with activation="gelu_new" the MLP\'s non-linearity makes 1.954500 of 2, expected 1.954598',
    ),
    (
        "ACTIVATIONS[config.activation]",
        "F.relu",
        "the activation is the one that the configuration names",
        "makes 2.000000 of 2",
    ),
    (
        "ACTIVATIONS[config.activation]",
        "lambda x: x * torch.sigmoid(1.702 * x)",
        "the activation is the one that the configuration names",
        'with activation="gelu_new"',
    ),
    (
        "self.mlp_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)",
        "self.mlp_norm = nn.LayerNorm(config.embedding_dim, eps=1e-3)",
        "trained weights compute what they were trained to",
        "it differs from the trained model first in blocks.0, by",
    ),
]
