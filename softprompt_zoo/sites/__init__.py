"""Where virtual tokens act on the frozen model; besides `backbone`, the only code that knows transformers' insides."""
