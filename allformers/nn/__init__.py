"""Parts that models share and a learner reads too: axes, shape checks, RoPE, masks, KV caches, configurations."""
