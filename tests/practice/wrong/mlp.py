WRONG = [
    ("gelu(self.up(x))", "self.up(x)", "it is not linear", "between x and -x it is a straight line"),
    (
        "return self.down(activated)",
        "return x + self.down(activated)",
        "it leaves adding to the block",
        "all weights are 0, and the result",
    ),
    (
        'activated: Float[Tensor, "batch seq mlp"] = gelu(self.up(x))\n        return self.down(activated)\n',
        "return gelu(self.down(self.up(x)))\n",
        "the result is what down gives",
        "the bias of `down` became 5 less, and the result at",
    ),
    ("gelu(self.up(x))", "self.up(x).relu()", "values", "the result has"),
    ("gelu(self.up(x))", "nn.functional.gelu(self.up(x))", "values", "the largest difference"),
    ("gelu(self.up(x))", "gelu(gelu(self.up(x)))", "values", "the largest difference"),
    ("self.up(x)", "self.up(x - x.mean(dim=1, keepdim=True))", "positions do not mix", "another vector at seq 2"),
    ("self.down(activated)", "self.up(activated)", "shapes", "in line"),
]
