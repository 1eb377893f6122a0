"""What several method pages share."""
