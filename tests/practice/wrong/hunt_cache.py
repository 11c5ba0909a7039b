WRONG = [
    (
        "positions = self.positions(token_ids, cache).clamp(min=0)",
        "positions = self.positions(token_ids) + (0 if cache is None else cache.length)",
        "a padded row is read as it is by itself",
        "behind 2 positions of padding beside a longer one: its logits differ by",
    ),
    (
        "self.positions(token_ids, cache).clamp(min=0)",
        "self.positions(token_ids, cache).clamp(min=0) + (cache is not None)",
        "read in pieces a text gives the same predictions",
        "read in pieces of 1, 1, 1, 1, 1, 1 tokens, the logits are other ones from seq 0 on",
    ),
    (
        "self.positions(token_ids, cache).clamp(min=0)",
        "self.positions(token_ids, cache)[:, (0 if cache is None else -1) :].clamp(min=0)",
        "read in pieces a text gives the same predictions",
        "read in pieces of 3, 2, 1 tokens, the logits are other ones from seq 0 on",
    ),
    (
        "self.lower_triangle[seq_k - seq : seq_k, :seq_k]",
        "self.lower_triangle[:seq, :seq_k]",
        "read in pieces a text gives the same predictions",
        "the logits are other ones from seq 1 on",
    ),
    (
        "None if cache is None else cache.layers[layer]",
        "None",
        "shapes",
        "The size of tensor a (7) must match the size of tensor b (3)",
    ),
    (
        "cache.advance(token_ids.shape[1])",
        "cache.advance(1)",
        "read in pieces a text gives the same predictions",
        "read in pieces of 3, 2, 1 tokens, the logits are other ones from seq 3 on",
    ),
]
