WRONG = [
    (
        "F.softmax(scores, dim=-1)",
        "F.softmax(scores, dim=1)",
        "what a query gives to all keys adds up to one",
        "with every value 1, what is mixed at batch",
    ),
    (
        "F.softmax(scores, dim=-1)",
        "F.softmax(scores, dim=0)",
        "what a query gives to all keys adds up to one",
        "that is what its weights add up to",
    ),
    (
        "self.weights_dropout(F.softmax(scores, dim=-1))",
        "F.softmax(scores, dim=-2)\n"
        "        weights = weights / weights.sum(dim=-1, keepdim=True)  # each row adds up to 1 again",
        "a later token never changes an earlier prediction",
        "another token at seq 2 changed the logits at batch 0, seq 1",
    ),
    (
        "scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)",
        "pass",
        "a later token never changes an earlier prediction",
        "another token at seq 1 changed",
    ),
    (
        "F.softmax(scores, dim=-1)",
        "F.softmax(scores, dim=-1).tril(-1)",
        "what a query gives to all keys adds up to one",
        "with every value 1",
    ),
]
