"""Shapes in annotations are checked in the tests' calls, and are plain tensors where jaxtyping is not installed."""

import importlib
import sys

import pytest
import torch
from helpers.checked_shapes import checked
from jaxtyping import TypeCheckError
from torch import Tensor

from softprompt_zoo import shapes
from softprompt_zoo.sites.positions import text_positions


def add(one: shapes.Float[Tensor, "rows hidden"], other: shapes.Float[Tensor, "#rows hidden"]) -> Tensor:
    return one + other


def test_axes_of_one_name_are_of_one_size():
    check = checked(add)
    assert check(torch.zeros(2, 3), torch.zeros(1, 3)).shape == (2, 3)
    with pytest.raises(TypeCheckError):
        check(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(TypeCheckError):
        check(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long))


def test_the_packages_own_functions_are_checked():
    positions = torch.zeros(1, 4, dtype=torch.long)
    assert text_positions({"position_ids": positions}, 4, 0, torch.device("cpu")) is positions
    with pytest.raises(TypeCheckError):
        text_positions({"position_ids": positions}, 5, 0, torch.device("cpu"))


def test_without_jaxtyping_they_are_tensors(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxtyping", None)
    monkeypatch.delitem(sys.modules, "softprompt_zoo.shapes")
    plain = importlib.import_module("softprompt_zoo.shapes")
    assert plain.Float[Tensor, "rows hidden"] is Tensor
    monkeypatch.undo()
    sys.modules["softprompt_zoo.shapes"] = shapes
