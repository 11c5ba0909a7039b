"""How a model learns: `data` (texts to batches), `loop` (a step), `runs` (a whole run, which can be interrupted),
`processes` (many of them at once) and `evaluation` (how good it is). Each is read by itself.
"""
