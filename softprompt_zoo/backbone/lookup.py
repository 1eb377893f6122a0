"""Lookups for parts that only some architectures have: the only place that asks configs and modules by name."""

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
    """Return the part of a module, or of another object of one of several kinds, that has a given name.

    Args:
        module: The module.
        name: An attribute, a child, or a parameter of it.
        default: The value if there is no such part.

    Returns:
        The part; else the default.
    """
    return getattr(module, name, default)


def has_parts(module: Any, *names: str) -> bool:
    """Return whether a module has parts with all of these names."""
    return all(hasattr(module, name) for name in names)
