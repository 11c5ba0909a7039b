WRONG = [
    (
        "            scaled, keys,",
        "            queries / math.sqrt(x.shape[-1]), keys,",
        "dot products are divided by the root of head dim",
        "in heads of head_dim 1, a query and a key have the dot product 1; its score is 0.2887, expected 1",
    ),
    (
        "            scaled, keys,",
        "            queries / queries.shape[-1], keys,",
        "dot products are divided by the root of head dim",
        "in heads of head_dim 4, a query and a key have the dot product 4; its score is 1, expected 2",
    ),
    (
        "            scaled, keys,",
        "            scaled, keys * self.scale,",
        "dot products are divided by the root of head dim",
        "its score is 1, expected 2",
    ),
    (
        "scaled = queries * self.scale",
        "scaled = queries / self.scale",
        "dot products are divided by the root of head dim",
        "its score is 8, expected 2",
    ),
    (
        "            scaled, keys,",
        "            queries / math.sqrt(queries.shape[-1]), keys,",
        "a configuration may scale otherwise",
        "with scale_scores=False and scale_scores_by_layer=False, in layer 1",
    ),
    (
        "self.scale /= layer + 1",
        "self.scale /= max(layer, 1)",
        "a configuration may scale otherwise",
        "is 2, expected 1",
    ),
]
