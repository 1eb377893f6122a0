"""What is known of a frozen model, found by looking at it and trying it."""
