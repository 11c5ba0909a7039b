WRONG = [
    (
        "return logits / temperature",
        "return logits * temperature",
        "odds of 9 to 1 become 3 to 1 at temperature 2",
        "at temperature 2.0, odds of 9 to 1 became 81 to 1",
    ),
    (
        "return logits / temperature",
        "return F.softmax(logits, dim=-1) / temperature",
        "odds of 9 to 1 become 3 to 1 at temperature 2",
        "odds of 9 to 1 became",
    ),
    (
        "    if temperature == 0:\n        return logits.argmax(dim=-1)\n",
        "",
        "shapes",
        "probability tensor contains either `inf`, `nan` or element < 0",
    ),
    (
        "    if temperature == 0:\n        return logits.argmax(dim=-1)\n",
        "    temperature = max(temperature, 0.01)\n",
        "temperature 0 takes the likeliest",
        "of 200 rows took another token than the likeliest",
    ),
    (
        "F.softmax(apply_temperature(logits, temperature), dim=-1)",
        "F.softmax(logits, dim=-1)",
        "a token is drawn as often as it is likely",
        "rows with odds of 9 to 1",
    ),
    (
        'rearrange(torch.multinomial(probabilities, 1), "batch 1 -> batch")',
        "probabilities.argmax(dim=-1)",
        "a token is drawn as often as it is likely",
        "20,000 drew the likelier token at temperature 1.0",
    ),
    (
        "F.softmax(apply_temperature(logits, temperature), dim=-1)",
        "F.softmax(apply_temperature(logits, temperature), dim=0)",
        "a token is drawn as often as it is likely",
        "of 20,000 rows with odds of 3 to 1, 10",
    ),
    (
        'rearrange(torch.multinomial(probabilities, 1), "batch 1 -> batch")',
        "torch.multinomial(probabilities, 1)",
        "shapes",
        "sample: the result has 2 axes, expected 1",
    ),
    (
        'rearrange(torch.multinomial(probabilities, 1), "batch 1 -> batch")',
        "torch.multinomial(probabilities[0], 1).expand(len(logits))",
        "a token is drawn as often as it is likely",
        "of 20,000 rows",
    ),
]
