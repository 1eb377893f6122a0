"""Parts shared by several method pages."""
