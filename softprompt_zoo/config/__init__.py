"""Options: frozen dataclasses that check their fields, and values held against declared types."""
