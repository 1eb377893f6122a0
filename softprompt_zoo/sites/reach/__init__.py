"""The ways to reach the attention of a stack."""
