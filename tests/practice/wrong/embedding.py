WRONG = [
    (
        "return tokens + positions",
        "return tokens",
        "a token has another vector at another position",
        "token 3 has the same vector at seq 0 and at seq 2",
    ),
    (
        "position_vectors[: token_ids.shape[1]]",
        "position_vectors[token_ids]",
        "a token has another vector at another position",
        "token 3 has the same vector",
    ),
    (
        "position_vectors[: token_ids.shape[1]]",
        "position_vectors[1 : token_ids.shape[1] + 1]",
        "shapes",
        "must match the size",
    ),
    ("position_vectors[: token_ids.shape[1]]", "position_vectors", "shapes", "must match the size"),
    (
        "position_vectors[: token_ids.shape[1]]",
        "position_vectors[-token_ids.shape[1] :]",
        "a token has another vector at another position",
        "between seq 0 and seq 2, token 3 changes by something else",
    ),
    (
        '    positions: Float[Tensor, "seq embed"] = position_vectors[: token_ids.shape[1]]\n',
        "    positions = position_vectors[len(token_ids)]\n",
        "a token has another vector at another position",
        "token 3 has the same vector",
    ),
    (
        "return tokens + positions",
        "return tokens * positions",
        "a token has another vector at another position",
        "something else",
    ),
    ("token_vectors[token_ids]", "token_vectors.detach()[token_ids]", "gradients", "reaches `token_vectors`"),
]
