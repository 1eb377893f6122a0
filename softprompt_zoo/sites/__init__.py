"""How virtual tokens act on a model in one forward."""
