"""A tiny model with one prompt, the one that most tests look at."""

from softprompt_zoo.testing.subject import Subject


def prompted(architecture="llama", method="prefix_tuning", implementation="sdpa", **options):
    """Attach a method with four virtual tokens, moved off their start."""
    return Subject.prompted(architecture, method, {"num_virtual_tokens": 4, **options}, implementation)
