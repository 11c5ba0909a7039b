WRONG = [
    (
        "        self.unembedding.weight = self.token_embedding.weight\n",
        "",
        "one tensor embeds and unembeds",
        "are two tensors",
    ),
    (
        " + self.position_embedding.weight[:seq]",
        "",
        "the order of tokens matters",
        "the logits after the tokens 1 2 3 4 and after 3 1 2 4 are the same",
    ),
    ("self.unembedding(self.final_norm(x))", "self.unembedding(x)", "it writes with trained weights", "it wrote"),
    (
        "causal_mask(seq)",
        "~causal_mask(seq)",
        "a later token never changes an earlier prediction",
        "another token at seq 4",
    ),
    ("range(config.num_layers)", "range(2)", "shapes", "it has no `blocks.2.attention_norm.weight`"),
    ("self.final_norm = nn", "self.norm = nn", "shapes", "it has no `final_norm.weight`"),
    ("x = block(x, mask)", "x = x + block(x, mask)", "it writes with trained weights", "it wrote"),
    ("        super().__init__()\n", "", "shapes", "before Module.__init__() call"),
]
