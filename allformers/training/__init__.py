"""How a model learns, a file for each question.

`data`: texts to batches. `recipe`: what decides a run. `loop`: a step. `runs`: a whole run, which can be interrupted.
`processes`: many of them at once. `evaluation`: how good the model is.
"""
