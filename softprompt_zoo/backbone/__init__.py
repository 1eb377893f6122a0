"""What is known of a frozen model, found by looking at it and by trying it; above `tokens`."""
