"""How the trials of a comparison are run: one by one, several in one batch, on a cluster."""
