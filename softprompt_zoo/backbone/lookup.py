"""What one architecture has and another has not: the only place where configs and modules are asked by name."""

from typing import Any


def config_value(config: Any, name: str, default: Any = None) -> Any:
    """Return a field of a config.

    Args:
        config: Any config of transformers or of PEFT.
        name: The field.
        default: What a config without this field means.

    Returns:
        Its value, which may be `None`; else the default.
    """
    return getattr(config, name, default)


def part_of(module: Any, name: str, default: Any = None) -> Any:
    """Return what a module, or anything else that is of one kind among several, holds under a name.

    Args:
        module: The module.
        name: An attribute, a child, or a parameter of it.
        default: What it means that there is none.

    Returns:
        What it is; else the default.
    """
    return getattr(module, name, default)


def has_parts(module: Any, *names: str) -> bool:
    """Return whether a module has something under all of these names."""
    return all(hasattr(module, name) for name in names)
