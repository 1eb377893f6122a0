"""Sizes and times in human-readable form."""


def shown_bytes(count: float) -> str:
    """Format a size in bytes, with decimal prefixes."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def shown_time(seconds: float) -> str:
    """Format a time in seconds."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
