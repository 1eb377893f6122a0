"""The built-in methods, one page each, registered by the same code as those of plugins."""

BUILTINS = (
    "prefix_tuning",
    "prompt_tuning",
    "multitask_prompt_tuning",
    "p_tuning_v2",
    "p_tuning",
    "cpt",
)

DEFAULT = BUILTINS[0]
"""The method that the command line trains by default."""
