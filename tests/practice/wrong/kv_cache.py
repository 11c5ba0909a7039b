WRONG = [
    (
        "torch.arange(seq_k - seq, seq_k)",
        "torch.arange(seq)",
        "token by token is the same as all at once",
        "differs by",
    ),
    (
        "        self.keys, self.values = keys, values\n",
        "",
        "the cache gives back all that it was given",
        "after 4 positions the cache gives back the keys of 1",
    ),
    (
        "torch.cat([self.keys, keys], dim=2)",
        "torch.cat([keys, self.keys], dim=2)",
        "the cache gives back all that it was given",
        "the keys that the cache gives back are not",
    ),
    (
        "torch.cat([self.values, values], dim=2)",
        "torch.cat([self.keys, values], dim=2)",
        "the cache gives back all that it was given",
        "the values that",
    ),
    (
        "torch.where(mask, scores, torch.finfo(scores.dtype).min)",
        "torch.where(mask | (seq < seq_k), scores, torch.finfo(scores.dtype).min)",
        "so is any other way to cut the text",
        "in pieces of 3, then 2, then 1",
    ),
    (
        "        keys, values = cache.append(keys, values)\n",
        "        cache.append(keys, values)\n",
        "token by token is the same as all at once",
        "differs by",
    ),
    (
        "torch.cat([self.keys, keys], dim=2)",
        "torch.cat([self.keys, keys], dim=1)",
        "the cache gives back all that it was given",
        "Sizes of tensors must match except in dimension 1",
    ),
]
