WRONG = [
    ("gelu(widened)", "widened", "there is a bend in it", "between x and -x it is a straight line"),
    ("return narrowed", "return x + narrowed", "it leaves adding to the block", "all weights are 0, and the result"),
    (
        'gelu(widened)\n        narrowed: Float[Tensor, "batch seq embed"] = self.down(active)\n',
        "widened\n        narrowed = gelu(self.down(active))\n",
        "narrowing comes last",
        "the bias of `down` became 5 less, and the result at",
    ),
    ("gelu(widened)", "widened.relu()", "values", "the result has"),
    ("gelu(widened)", "nn.functional.gelu(widened)", "values", "the largest difference"),
    ("gelu(widened)", "gelu(gelu(widened))", "values", "the largest difference"),
    ("self.up(x)", "self.up(x - x.mean(dim=1, keepdim=True))", "positions do not mix", "another vector at seq 2"),
    ("self.down(active)", "self.up(active)", "shapes", "in line"),
]
