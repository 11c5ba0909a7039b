WRONG = [
    (
        "0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))",
        "(1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))",
        "far above zero nothing changes",
        "gelu(10) is 20",
    ),
    (
        "0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))",
        "0.5 * 1 + torch.tanh(math.sqrt(2 / math.pi) * cubic)",
        "far above zero nothing changes",
        "gelu(10) is 15",
    ),
    (
        "0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))",
        "0.5 * (1 - torch.tanh(math.sqrt(2 / math.pi) * cubic))",
        "far above zero nothing changes",
        "gelu(10) is 0",
    ),
    ("0.044715 * x**3", "0.044715 * x**2", "far below zero nothing is left", "gelu(-10) is -0.001"),
    ("0.044715 * x**3", "(0.044715 * x) ** 3", "values", "the largest difference"),
    ("math.sqrt(2 / math.pi)", "2 / math.pi", "it dips below zero", "the lowest value is"),
    ("math.sqrt(2 / math.pi)", "math.sqrt(2 * math.pi)", "it dips below zero", "the lowest value is"),
    (
        "0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))",
        "0.5 * (1 + torch.erf(x / math.sqrt(2)))",
        "it is the form with tanh",
        "this is the exact function",
    ),
    ("return x * share", "return x.relu()", "it dips below zero", "the lowest value is 0"),
    ("return x * share", "return x * torch.sigmoid(1.702 * x)", "it dips below zero", "the lowest value is -0.1636"),
]
