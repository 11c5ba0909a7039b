WRONG = [
    (
        "torch.arange(0, head_dim, 2) / head_dim",
        "torch.arange(head_dim // 2) / head_dim",
        "speeds fall from 1 to nearly 1 over theta",
        "with `head_dim` 8 and `theta` 10000 the speeds are 1 0.3162 0.1 0.03162",
    ),
    (
        "torch.arange(0, head_dim, 2) / head_dim",
        "torch.arange(head_dim) / head_dim",
        "speeds fall from 1 to nearly 1 over theta",
        "a head of width 8 got 8 pairs",
    ),
    (
        "1.0 / theta**exponents",
        "theta**exponents",
        "speeds fall from 1 to nearly 1 over theta",
        "the speeds are 1 10 100 1000",
    ),
    (
        "einsum(positions.to(speeds.dtype), speeds,",
        "einsum(positions.to(speeds.dtype) + 1, speeds,",
        "an angle is position times speed",
        "position 0 is turned by 1 0.5",
    ),
    (
        "    both = [first * cosine",
        "    x *= 2.0\n    both = [first * cosine",
        "a quarter turn makes 0 and 1 of 1 and 0",
        "`rotate` changes its argument `x` in place: that may be why",
    ),
    (
        "second * cosine + first * sine",
        "second * cosine - first * sine",
        "turning keeps the length",
        "the length of the vector at batch",
    ),
    (
        "[first * cosine - second * sine, second * cosine + first * sine]",
        "[first * cosine + second * sine, second * cosine - first * sine]",
        "a quarter turn makes 0 and 1 of 1 and 0",
        "became 0 2 -1 0",
    ),
    (
        "batch heads seq (component pair) -> component batch heads seq pair",
        "batch heads seq (pair component) -> component batch heads seq pair",
        "a quarter turn makes 0 and 1 of 1 and 0",
        "became",
    ),
    (
        "[first * cosine - second * sine, second * cosine + first * sine]",
        "[first + cosine, second + sine]",
        "turning keeps the length",
        "has changed by",
    ),
    (
        "cosine, sine = turned.cos(), turned.sin()",
        "cosine, sine = torch.ones_like(turned), torch.zeros_like(turned)",
        "a quarter turn makes 0 and 1 of 1 and 0",
        "became 1 2 0 0",
    ),
    (
        "einsum(positions.to(speeds.dtype), speeds,",
        "einsum(positions.to(speeds.dtype).clamp(max=12), speeds,",
        "only the distance counts",
        "at positions 3 and 1 the dot product is",
    ),
    (
        "cosine, sine = turned.cos(), turned.sin()",
        "cosine, sine = turned.cos(), turned.detach().sin()",
        "gradients",
        "`turned`",
    ),
]
