"""Training: `data` tokenises corpora and cuts batches; `recipes` are the configurations of runs.

`loop` takes one step; `runs` is a whole run in a folder, which can be interrupted; `train` follows a recipe from text
to model; `processes` is data parallelism; `evaluation` is perplexity and bits per byte; `curves` draws losses.
"""
