"""Options: frozen dataclasses, checks of values, and JSON checked against declared types; above `errors`."""
