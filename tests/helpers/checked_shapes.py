"""Shape checks in every call of the package's functions, except when torch compiles them.

jaxtyping's own import hook wraps every function, including compiled ones. This one wraps only functions whose
annotations name a shape, and checks only the shapes: mypy checks the other annotations.
"""

import dataclasses
import functools
import importlib.abc
import importlib.machinery
import inspect
import re
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


def counted(hint):
    """Return the arguments from which an annotation computes sizes."""
    own = re.findall(r"\{(.*?)\}", str(getattr(hint, "dim_str", "")))
    return set(re.findall(r"[A-Za-z_]\w*", " ".join(own))).union(*map(counted, get_args(hint)))


def form(value):
    """Return the parts of a value that a shape check reads."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape
    if isinstance(value, int):
        return value
    if isinstance(value, dict):
        return dict, tuple((key, form(each)) for key, each in value.items())
    return (type(value), tuple(map(form, value))) if isinstance(value, list | tuple) else type(value)


def annotated(function, names, shapes):
    """Give a catch-all function a signature with only these annotations; return a function that checks them."""
    signature = inspect.signature(names)
    parameters = [each.replace(annotation=shapes.get(name, each.empty)) for name, each in signature.parameters.items()]
    functools.update_wrapper(function, names)
    function.__annotations__ = shapes
    function.__signature__ = signature.replace(
        parameters=parameters, return_annotation=shapes.get("return", signature.empty)
    )
    return jaxtyped(function, typechecker=beartype)


def checked(function):
    """Return a function with checks of its annotated shapes, once for equal ones, or unchanged if it has none."""
    shapes = {name: hint for name, hint in inspect.get_annotations(function).items() if says_shape(hint)}
    if not shapes:
        return function
    checking = checker(function, shapes)

    @functools.wraps(function)
    def call(*args, **kwargs):  # dynamo reads no further than this
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        return checking(*args, **kwargs)

    return call


def checker(function, shapes):
    """Return a function that calls `function`, and checks these shapes unless it has seen equal ones."""
    checking = annotated(lambda *args, **kwargs: function(*args, **kwargs), function, shapes)
    hints, counts = inspect.get_annotations(function), set().union(*map(counted, shapes.values()))
    looked_at = counts | shapes.keys()
    places = [(place, name) for place, name in enumerate(inspect.signature(function).parameters) if name in looked_at]
    passed, is_fixed = {}, all(hints.get(name) is int for name in counts)

    def call(*args, **kwargs):
        given = tuple(form(args[place] if place < len(args) else kwargs.get(name)) for place, name in places)
        if given in passed:
            result = function(*args, **kwargs)
            if "return" in shapes and form(result) not in passed[given]:
                annotated(lambda *args, **kwargs: result, function, shapes)(*args, **kwargs)
                passed[given].add(form(result))
            return result
        try:
            result = checking(*args, **kwargs)
        except TypeCheckError as error:
            if "checking the parameters" in str(error):
                function(*args, **kwargs)  # arguments that the function itself refuses may have any shape
            raise
        if is_fixed:
            passed[given] = {form(result)}
        return result

    return call


def check_all(module):
    """Make a module's functions, and its classes' methods and properties, check their shapes."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    for owner in [module, *(each for each in classes if each.__module__ == module.__name__)]:
        for name, value in list(vars(owner).items()):
            if name == "__init__" and dataclasses.is_dataclass(owner):
                continue  # plugins create these; the host reports what is wrong with them
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                setattr(owner, name, checked(value))
            elif isinstance(value, property) and says_shape(inspect.get_annotations(value.fget).get("return")):
                checking = property(checked(value.fget), value.fset, value.fdel, value.__doc__)
                checking.__set_name__(owner, name)
                setattr(owner, name, checking)


class Finder(importlib.abc.MetaPathFinder):
    """A finder that loads the package's modules as Python does, and then makes them check their shapes."""

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
    """Check shapes in the modules that are imported from now on."""
    sys.meta_path.insert(0, Finder())
