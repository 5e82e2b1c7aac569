"""From a text file to a model: documents, tokens, windows, steps, checkpoints. `minigpt.train` is the command."""
