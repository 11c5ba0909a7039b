WRONG = [
    (
        "self.position_embedding(cache.positions(token_ids))",
        "self.position_embedding.weight[start:stop]",
        "a padded row is read as it is by itself",
        "behind 2 positions of padding beside a longer one: its logits differ by",
    ),
    (
        "self.position_embedding(cache.positions(token_ids))",
        "self.position_embedding(cache.positions(token_ids) + 1)",
        "read in pieces a text gives the same predictions",
        "read in pieces of 1, 1, 1, 1, 1, 1 tokens, the logits are other ones from seq 0 on",
    ),
    (
        "self.position_embedding(cache.positions(token_ids))",
        "self.position_embedding.weight[stop - 1]",
        "read in pieces a text gives the same predictions",
        "read in pieces of 3, 2, 1 tokens, the logits are other ones from seq 0 on",
    ),
    (
        "self.later[start:stop, :stop]",
        "self.later[: stop - start, :stop]",
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
