"""Facts about a frozen model, found by inspecting it and by running it; above `tokens`."""
