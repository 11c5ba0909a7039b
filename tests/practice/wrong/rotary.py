FREQUENCIES = "frequencies fall from 1 to nearly 1 over theta"
QUARTER = "a quarter turn makes 0 and 1 of 1 and 0"
WRONG = [
    (
        "torch.arange(0, head_dim, 2) / head_dim",
        "torch.arange(head_dim // 2) / head_dim",
        FREQUENCIES,
        "with `head_dim` 8 and `theta` 10000, `inv_freq` is 1 0.3162 0.1 0.03162",
    ),
    (
        "torch.arange(0, head_dim, 2) / head_dim",
        "torch.arange(head_dim) / head_dim",
        FREQUENCIES,
        "a head of width 8 got 8 pairs",
    ),
    ("1.0 / theta**exponents", "theta**exponents", FREQUENCIES, "`inv_freq` is 1 10 100 1000"),
    (
        "einsum(positions.to(inv_freq.dtype), inv_freq,",
        "einsum(positions.to(inv_freq.dtype) + 1, inv_freq,",
        "an angle is position times inv freq",
        "the cosine at position 0 is 0.5403 0.8776",
    ),
    (
        "return angles.cos(), angles.sin()",
        "return angles.sin(), angles.cos()",
        "an angle is position times inv freq",
        "the cosine at position 0 is 0 0",
    ),
    (
        "    return torch.cat([a * cos",
        "    x *= 2.0\n    return torch.cat([a * cos",
        QUARTER,
        "`apply_rope` changes its argument `x` in place: that may be why",
    ),
    (
        "b * cos + a * sin]",
        "b * cos - a * sin]",
        "a rotation keeps the length",
        "the length of the vector at batch",
    ),
    ("[a * cos - b * sin, b * cos + a * sin]", "[a * cos + b * sin, b * cos - a * sin]", QUARTER, "became 0 2 -1 0"),
    (
        "... seq (component pair) -> component ... seq pair",
        "... seq (pair component) -> component ... seq pair",
        QUARTER,
        "became",
    ),
    (
        "... seq (component pair) -> component ... seq pair",
        "batch heads seq (component pair) -> component batch heads seq pair",
        "shapes",
        "EinopsError",
    ),
    ("[a * cos - b * sin, b * cos + a * sin]", "[a + cos, b + sin]", "a rotation keeps the length", "has changed by"),
    ("[a * cos - b * sin, b * cos + a * sin]", "[a, b]", QUARTER, "became 1 2 0 0"),
    (
        "einsum(positions.to(inv_freq.dtype), inv_freq,",
        "einsum(positions.to(inv_freq.dtype).clamp(max=12), inv_freq,",
        "only the distance counts",
        "at positions 3 and 1 the dot product is",
    ),
    ("b * cos + a * sin]", "b * cos + a * sin.detach()]", "gradients", "`sin`"),
]
