WRONG = [
    (
        '"batch seq embed -> batch seq 1", "mean")',
        '"batch seq embed -> batch seq 1", "sum")',
        "the result has a known size",
        "is 0.2887, expected 1",
    ),
    (
        '"batch seq embed -> batch seq 1", "mean")',
        '"batch seq embed -> 1 1 1", "mean")',
        "the result has a known size",
        "the root mean square at batch",
    ),
    (
        "torch.rsqrt(mean_square + self.eps)",
        "(mean_square + self.eps)",
        "the result has a known size",
        "expected 1",
    ),
    (
        "x32 = x.float()",
        'x32 = x.float() - reduce(x.float(), "batch seq embed -> batch seq 1", "mean")',
        "the direction stays",
        "a vector of fives became 0 0 0 0 0 0",
    ),
    ("mean_square + self.eps", "mean_square", "a vector of zeros stays one", "a vector of zeros became nan"),
    (
        "x32 = x.float()",
        "x32 = x",
        "large numbers in half precision do not overflow",
        "a float16 vector of 300s became 0 0 0 0 0 0",
    ),
    (
        "self.weight * normalised.to(x.dtype)",
        "self.weight.float() * normalised",
        "large numbers in half precision do not overflow",
        "came back as float32",
    ),
    (
        "torch.rsqrt(mean_square + self.eps)",
        "1 / (mean_square.sqrt() + self.eps)",
        "eps is added before the root is taken",
        "with `eps` 3, a vector of ones became 0.25",
    ),
    ("return self.weight * normalised.to(x.dtype)", "return normalised.to(x.dtype)", "values", "the result has"),
    ("torch.rsqrt(mean_square", "torch.rsqrt(mean_square.detach()", "gradients", "the gradient of `x`"),
]
