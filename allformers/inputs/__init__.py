"""From text and images to what a model reads."""
