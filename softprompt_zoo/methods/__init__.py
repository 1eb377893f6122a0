"""The methods that ship with the package: a page each, registered by the code that registers strangers'."""

BUILTINS = (
    "prefix_tuning",
    "prompt_tuning",
    "multitask_prompt_tuning",
    "p_tuning_v2",
    "p_tuning",
    "cpt",
)

DEFAULT = BUILTINS[0]
"""What the command line trains unless told otherwise."""
