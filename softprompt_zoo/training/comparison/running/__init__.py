"""How the trials of a comparison are run: one by one, several in one batch, or on a cluster.

`run_trial` runs one trial, and `run_group` several in shared batches; a `Runner` calls them.
"""
