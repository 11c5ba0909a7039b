"""The models, a folder each, in the reading order that `registry` states."""
