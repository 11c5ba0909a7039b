"""What models share and a learner reads too: axes, shape checks, rotary positions, caches, configurations."""
