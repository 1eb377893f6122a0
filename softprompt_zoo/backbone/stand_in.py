"""Subclasses that stand in for the class of a user's object: they have its name and survive pickling."""

from collections.abc import Callable
from typing import Any


def stand_in(base: Any, make: Callable[[Any], Any], *mixins: Any, **members: Any) -> Any:
    """Make a subclass that has the name of its base.

    Args:
        base: The user's class.
        make: The module-level function that makes this class from the base, and caches it.
        *mixins: Classes before the base.
        **members: Attributes of the class.

    Returns:
        The class; its objects are pickled with all their attributes.
    """

    def reduce(self: Any, protocol: Any) -> Any:
        # Pickle would look the class up by its name and find the user's.
        return rebuild, (make, base), self.__dict__.copy()

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (*mixins, base), {**names, "__reduce_ex__": reduce, **members})


def rebuild(make: Callable[[Any], Any], base: Any) -> Any:
    """Make an empty object of a class that stands in for another, for copy and pickle to fill."""
    cls = make(base)
    return cls.__new__(cls)
