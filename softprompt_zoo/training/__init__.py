"""Training a prompt from a file of examples, as the command line does it; `run.train` is the whole of it."""
