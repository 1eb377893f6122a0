"""How the trials of a comparison are run: one by one, several in one batch, or on a cluster."""
