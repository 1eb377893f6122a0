"""Options: frozen dataclasses, checks of values, JSON held against declared types; above `errors`."""
