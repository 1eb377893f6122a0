"""One prompt, in no model."""
