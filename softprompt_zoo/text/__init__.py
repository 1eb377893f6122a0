"""Texts and templates with slots, encoded as rows of a batch; above `config`."""
