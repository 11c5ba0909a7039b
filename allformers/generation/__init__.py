"""Writing with a decoder: the base class, the loop, and how logits become a token."""
