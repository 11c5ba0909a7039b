"""Checkpoints in Hugging Face's format, read and written by tables.

A checkpoint is a folder: `config.json` says which model it is, `model.safetensors` holds the weights by name. Whatever
is wrong with one is a `CheckpointError`.

| file | what it holds |
|---|---|
| `tables` | the rows that a model states: `Weight`, `Field`, `Format` |
| `config_json` | from `config.json` to a configuration and back |
| `hub` | where the files are |
| `tensors` | the files that hold tensors |
| `pickles` | those that PyTorch pickles, read without being run |
| `quantised` | from float8 to numbers that can be computed with |
| `loading` | from tensors to a model and back |
| `pretrained` | the methods that a model inherits |
| `atomic` | files and folders that are written whole or not at all |
"""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model. The message names the file, field or weight."""
