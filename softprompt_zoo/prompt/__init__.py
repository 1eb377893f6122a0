"""One prompt, in no model: what it is made of, and whether it fits one; above `registry` and `sites`."""
