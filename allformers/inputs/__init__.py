"""Inputs of models: tokenizers for text, preprocessing for images."""
