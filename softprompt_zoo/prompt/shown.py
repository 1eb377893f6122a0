"""A one-line description of a prompt for users."""

from softprompt_zoo.prompt.prompt import Prompt


def shown(prompt: Prompt) -> str:
    """Describe a prompt in one line.

    Args:
        prompt: Any prompt, on a model or not.

    Returns:
        Its method, its size, and anything unusual.
    """
    parts = [
        f"{prompt.num_virtual_tokens} virtual token{'' if prompt.num_virtual_tokens == 1 else 's'}",
        f"{prompt.num_parameters:,} parameters",
        "merged" if prompt.is_merged else "",
        "" if prompt.is_trained else "frozen",
        f"{prompt.config.tasks} tasks" if prompt.config.tasks else "",
        f"weight {prompt.weight:g}" if prompt.weight != 1 else "",
        "with a task head" if prompt.head is not None else "",
        *(f"within {name}" for name in prompt.wrappers),
    ]
    return f"{prompt.method}, {', '.join(part for part in parts if part)}"
