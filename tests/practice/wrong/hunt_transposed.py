WRONG = [
    (
        "self.output(merged)",
        "F.linear(merged, rearrange(self.output.weight, 'out embed -> embed out'), self.output.bias)",
        "a row of the output matrix makes one number of the result",
        "was 0 but for row 2, column 7; the result was not 0 at embed 7",
    ),
    (
        "self.output(merged)",
        "F.linear(merged, self.output.weight)",
        "without its matrix the projection gives its bias",
        "the result was not 0.5, most of all at batch 0, seq 0, embed 0, by 0.5",
    ),
    (
        "self.output(merged)",
        "merged",
        "a row of the output matrix makes one number of the result",
        "the result was not 0 at embed 0, 1, 2",
    ),
    (
        "batch seq (heads head_dim)",
        "batch seq (head_dim heads)",
        "values",
        "the result has",
    ),
    (
        "self.query_key_value(x),",
        "x @ rearrange(self.query_key_value.weight, 'out embed -> embed out'),",
        "values",
        "the result has",
    ),
]
