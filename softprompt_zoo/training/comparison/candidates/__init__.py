"""What a comparison tries: soft-prompt methods, and baselines beside them, each a `Candidate`."""
