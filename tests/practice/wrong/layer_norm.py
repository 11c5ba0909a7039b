WRONG = [
    (
        'reduce(x, "batch seq embed -> batch seq 1", "mean")',
        'reduce(x, "batch seq embed -> batch 1 embed", "mean")',
        "positions do not mix",
        "other numbers at batch 1, seq 3 changed the result at batch 1",
    ),
    (
        'reduce(centred**2, "batch seq embed -> batch seq 1", "mean")',
        "centred.var()",
        "positions do not mix",
        "other numbers at batch 1, seq 3 changed the result at batch",
    ),
    (
        'reduce(centred**2, "batch seq embed -> batch seq 1", "mean")',
        "x.var(dim=-1, keepdim=True)",
        "each position has spread 1",
        "have a spread that is 0.04257 from 1",
    ),
    (
        'reduce(centred**2, "batch seq embed -> batch seq 1", "mean")',
        'reduce(x**2, "batch seq embed -> batch seq 1", "mean")',
        "each position has spread 1",
        "from 1",
    ),
    ("= centred / (variance", "= x / (variance", "each position has mean 0", "have a mean that is"),
    ("(variance + self.eps).sqrt()", "(variance + self.eps)", "each position has spread 1", "from 1"),
    ("(variance + self.eps).sqrt()", "variance.sqrt()", "equal numbers are no trouble", "it makes nan"),
    ("(variance + self.eps).sqrt()", "(variance.sqrt() + self.eps)", "values", "the result has"),
    ("return normalised * self.weight + self.bias", "return normalised", "values", "the result has"),
    (
        "return normalised * self.weight + self.bias",
        "return self.weight * (normalised + self.bias)",
        "values",
        "the result has",
    ),
]
