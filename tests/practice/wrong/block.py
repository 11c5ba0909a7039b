WRONG = [
    (
        "= x + self.attention(self.attention_norm(x), blocked)",
        "= self.attention(self.attention_norm(x), blocked)",
        "a block that adds nothing changes nothing",
        "but the stream has changed by",
    ),
    (
        "= x + self.attention(self.attention_norm(x), blocked)",
        "= self.attention_norm(x + self.attention(x, blocked))",
        "a block that adds nothing changes nothing",
        "attention and MLP give zero",
    ),
    (
        "self.mlp(self.mlp_norm(between))",
        "self.mlp(self.mlp_norm(x))",
        "the mlp reads what attention has added",
        "another vector at seq 0 changed nothing in what the MLP reads at seq 4",
    ),
    ("self.mlp(self.mlp_norm(between))", "self.mlp(between)", "values", "the result has"),
    ("self.mlp(self.mlp_norm(between))", "self.mlp(self.attention_norm(between))", "values", "the result has"),
    ("self.attention(self.attention_norm(x), blocked)", "self.attention(self.attention_norm(x))", "shapes", "missing"),
]
