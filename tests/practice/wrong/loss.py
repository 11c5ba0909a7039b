WRONG = [
    (
        "return passages[:, :-1], passages[:, 1:]",
        "return passages, passages",
        "the answer is one position further on",
        "the inputs are 1, 2, 3, 4, 5",
    ),
    (
        "return passages[:, :-1], passages[:, 1:]",
        "return passages[:, :-1], passages[:, :-1]",
        "the answer is one position further on",
        "the targets are 1, 2, 3, 4",
    ),
    (
        "return passages[:, :-1], passages[:, 1:]",
        "return passages[:, 1:], passages[:, :-1]",
        "the answer is one position further on",
        "the inputs are 2, 3, 4, 5",
    ),
    (
        "return passages[:, :-1], passages[:, 1:]",
        "return passages[:, :-1], passages[1:]",
        "the answer is one position further on",
        "inputs_and_targets: the result is",
    ),
    (
        'rearrange(logits, "batch seq vocab -> (batch seq) vocab")',
        'rearrange(logits, "batch seq vocab -> (batch seq) vocab").softmax(dim=-1)',
        "to be right for certain costs nothing",
        "all others are 0, and the loss is 1.1",
    ),
    (
        'rearrange(logits, "batch seq vocab -> (batch seq) vocab"), rearrange(targets, "batch seq -> (batch seq)")',
        "logits, targets",
        "shapes",
        "in line",
    ),
    (
        'rearrange(targets, "batch seq -> (batch seq)")',
        "targets.view(-1)",
        "shapes",
        "view size is not compatible",
    ),
    (
        'rearrange(targets, "batch seq -> (batch seq)")',
        'rearrange(targets, "batch seq -> (batch seq)"), reduction="sum"',
        "a model that knows nothing scores the log of the vocabulary",
        "the loss is 23.98",
    ),
    (
        'rearrange(targets, "batch seq -> (batch seq)")',
        'rearrange(targets, "batch seq -> (seq batch)")',
        "to be right for certain costs nothing",
        "the loss is",
    ),
    (
        "return F.cross_entropy(",
        "logits, targets = logits[:, -1:], targets[:, -1:]\n    return F.cross_entropy(",
        "every position counts the same",
        "does not have the tenth of the loss",
    ),
]
