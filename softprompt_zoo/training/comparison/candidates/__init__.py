"""What a comparison tries: soft-prompt methods and baselines, each a `Candidate`."""
