WRONG = [
    (
        "= x + self.attention(self.attention_norm(x), mask)",
        "= self.attention(self.attention_norm(x), mask)",
        "a block that adds nothing changes nothing",
        "but the stream has changed by",
    ),
    (
        "= x + self.attention(self.attention_norm(x), mask)",
        "= self.attention_norm(x + self.attention(x, mask))",
        "a block that adds nothing changes nothing",
        "attention and MLP give zero",
    ),
    (
        "self.mlp(self.mlp_norm(x_mid))",
        "self.mlp(self.mlp_norm(x))",
        "the mlp reads what attention has added",
        "another vector at seq 0 changed nothing in what the MLP reads at seq 4",
    ),
    ("self.mlp(self.mlp_norm(x_mid))", "self.mlp(x_mid)", "values", "the result has"),
    ("self.mlp(self.mlp_norm(x_mid))", "self.mlp(self.attention_norm(x_mid))", "values", "the result has"),
    ("self.attention(self.attention_norm(x), mask)", "self.attention(self.attention_norm(x))", "shapes", "missing"),
]
