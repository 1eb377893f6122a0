"""Shape annotations are checked in the tests' calls, and are plain tensors if jaxtyping is not installed."""

import ast
import importlib
import sys
from pathlib import Path

import pytest
import torch
from helpers.checked_shapes import checked
from jaxtyping import TypeCheckError
from torch import Tensor

import softprompt_zoo
from softprompt_zoo import shapes
from softprompt_zoo.sites.positions import text_positions

ROOMS = [
    "backbone",
    "exchange.py",
    "hookspecs.py",
    "methods",
    "model",
    "operations",
    "prompt",
    "sites",
    "text",
    "tokens",
]
"""Where tensors are computed, and what is public; other modules read, write and try tensors of any shape."""
WITHOUT_SHAPE = {
    "operations/blend.py: blend": "the weights may be any numbers; the function itself reports what is wrong with them"
}


def has_bare_tensor(annotation):
    """Return whether an annotation has Tensor without a shape; mappings of named tensors of any shape need none."""
    match annotation:
        case ast.Constant(value=str(text)):
            return has_bare_tensor(ast.parse(text, mode="eval").body)
        case ast.Name(id="Tensor") | ast.Attribute(attr="Tensor"):
            return True
        case ast.Subscript(value=ast.Name(id="Float" | "Int" | "Bool" | "Shaped")):
            return False
        case ast.Subscript(value=ast.Name(id="Mapping" | "dict"), slice=ast.Tuple(elts=[ast.Name("str"), ast.Name()])):
            return False
    return any(map(has_bare_tensor, ast.iter_child_nodes(annotation)))


def without_shape(source):
    """Return the names of functions, and of fields of classes, whose annotations have Tensor without a shape."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            hints = [each.annotation for each in ast.walk(node.args) if isinstance(each, ast.arg)] + [node.returns]
            found += [node.name] * any(has_bare_tensor(hint) for hint in hints if hint is not None)
        if isinstance(node, ast.ClassDef):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
            found += [ast.unparse(each.target) for each in fields if has_bare_tensor(each.annotation)]
    return found


def add(one: shapes.Float[Tensor, "rows hidden"], other: shapes.Float[Tensor, "#rows hidden"]) -> Tensor:
    return one + other


def test_axes_of_one_name_are_of_one_size():
    check = checked(add)
    assert check(torch.zeros(2, 3), torch.zeros(1, 3)).shape == (2, 3)
    with pytest.raises(TypeCheckError):
        check(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(TypeCheckError):
        check(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long))


def repeat(states: shapes.Float[Tensor, " rows"], count: int) -> shapes.Float[Tensor, "{count} rows"]:
    return states.expand(2, -1)


def test_a_size_that_an_argument_says_is_checked_in_every_call():
    check, states = checked(repeat), torch.zeros(3)
    for _ in range(2):
        assert check(states, 2).shape == (2, 3)
        with pytest.raises(TypeCheckError):
            check(states, 4)


def test_the_packages_own_functions_are_checked():
    positions = torch.zeros(1, 4, dtype=torch.long)
    assert text_positions({"position_ids": positions}, 4, 0, torch.device("cpu")) is positions
    with pytest.raises(TypeCheckError):
        text_positions({"position_ids": positions}, 5, 0, torch.device("cpu"))


def test_functions_of_tensors_say_shapes():
    root = Path(softprompt_zoo.__file__).parent
    files = [
        file for room in ROOMS for file in ([root / room] if room.endswith(".py") else (root / room).rglob("*.py"))
    ]
    found = [f"{file.relative_to(root)}: {name}" for file in files for name in without_shape(file.read_text())]
    assert found == list(WITHOUT_SHAPE)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(a: Tensor): ...", ["f"]),
        ("def f(*, a: int | None = None) -> 'list[torch.Tensor] | None': ...", ["f"]),
        ("class C:\n    a: Tensor\n    def f(self, a: dict[str, list[Tensor]]): ...", ["f", "a"]),
        ("def f(a: Float[Tensor, 'rows'], b: Mapping[str, Tensor]) -> Int[Tensor, ''] | None: ...", []),
    ],
)
def test_missing_shapes_are_found(source, names):
    assert sorted(without_shape(source)) == sorted(names)


def test_without_jaxtyping_they_are_tensors(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxtyping", None)
    monkeypatch.delitem(sys.modules, "softprompt_zoo.shapes")
    plain = importlib.import_module("softprompt_zoo.shapes")
    assert plain.Float[Tensor, "rows hidden"] is Tensor
    monkeypatch.undo()
    sys.modules["softprompt_zoo.shapes"] = shapes
