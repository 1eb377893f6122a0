"""Annotations of shapes are checked in every call of the package's functions, but not where torch compiles them.

As jaxtyping's own import hook does it, which wraps every function, compiled ones too; this one wraps those that say a
shape, and checks the shapes alone: the other annotations are mypy's.
"""

import dataclasses
import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
from typing import get_args

import torch
from beartype import beartype
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

PACKAGE = "softprompt_zoo"


def says_shape(hint):
    """Return whether an annotation, or a part of it, is one of jaxtyping's."""
    is_shape = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return is_shape or any(map(says_shape, get_args(hint)))


def checked(function):
    """Return a function that checks the shapes its annotations say; the same one if they say none."""
    shapes = {name: hint for name, hint in inspect.get_annotations(function).items() if says_shape(hint)}
    if not shapes:
        return function

    @functools.wraps(function)
    def unannotated(*args, **kwargs):
        return function(*args, **kwargs)

    signature = inspect.signature(function)
    parameters = [each.replace(annotation=shapes.get(name, each.empty)) for name, each in signature.parameters.items()]
    unannotated.__annotations__ = shapes
    unannotated.__signature__ = signature.replace(
        parameters=parameters, return_annotation=shapes.get("return", signature.empty)
    )
    checking = jaxtyped(unannotated, typechecker=beartype)

    @functools.wraps(function)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            return checking(*args, **kwargs)
        except TypeCheckError as error:
            if "checking the parameters" in str(error):
                function(*args, **kwargs)  # what it refuses itself may be given to it
            raise

    return call


def check_all(module):
    """Let a module's functions, and its classes' methods and properties, check their shapes."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    for owner in [module, *(each for each in classes if each.__module__ == module.__name__)]:
        for name, value in list(vars(owner).items()):
            if name == "__init__" and dataclasses.is_dataclass(owner):
                continue  # plugins make these; the host says what is wrong with them
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                setattr(owner, name, checked(value))
            elif isinstance(value, property) and says_shape(inspect.get_annotations(value.fget).get("return")):
                checking = property(checked(value.fget), value.fset, value.fdel, value.__doc__)
                checking.__set_name__(owner, name)
                setattr(owner, name, checking)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the package's modules as Python does, and lets them check their shapes once they are loaded."""

    def find_spec(self, name, path, target=None):
        if not name.startswith(f"{PACKAGE}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                check_all(module)

            spec.loader.exec_module = exec_module
        return spec


def install():
    """Check the modules that are imported from now on."""
    sys.meta_path.insert(0, Finder())
