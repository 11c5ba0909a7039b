WRONG = [
    (
        "logits[:, -1].argmax(dim=-1)",
        "logits[:, 0].argmax(dim=-1)",
        "a model that counts goes on counting",
        "given 3 4, wrote 3 4 4 4 4",
    ),
    (
        "text[:, -context_length:]",
        "token_ids[:, -context_length:]",
        "a model that counts goes on counting",
        "given 3 4, wrote 3 4 5 5 5",
    ),
    (
        "torch.cat([text, rearrange",
        "torch.cat([token_ids, rearrange",
        "shapes",
        "the result has 4 on axis `total`, expected 7",
    ),
    ("model(text[:, -context_length:])", "model(text)", "shapes", "context"),
    (
        "text[:, -context_length:]",
        "text[:, :context_length]",
        "the model reads as much as it can",
        "the model was given 3 4 5 when the text was 3 4 5 6",
    ),
    (
        "text[:, -context_length:]",
        "text[:, -1:]",
        "the model reads as much as it can",
        "the model was given 4 when the text was 3 4",
    ),
    ("argmax(dim=-1)", "argmax()", "shapes", "batch -> batch 1"),
    ("return text", "return text[:, token_ids.shape[1] :]", "shapes", "has 4 on axis `total`, expected 7"),
    (
        "logits[:, -1].argmax(dim=-1)",
        "logits[:, -1].mean(dim=0, keepdim=True).argmax(dim=-1).expand(len(text))",
        "a model that counts goes on counting",
        "given 3 4, wrote 3 4 0 1 2",
    ),
]
