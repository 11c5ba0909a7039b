"""Autoregressive generation: the base class of decoders, the loop, and sampling."""
