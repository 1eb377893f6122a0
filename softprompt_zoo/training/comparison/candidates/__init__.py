"""The candidates of a comparison: soft-prompt methods and baselines, each a `Candidate`."""
