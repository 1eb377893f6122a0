"""Texts and templates with slots, turned into rows of a batch; above `config`."""
