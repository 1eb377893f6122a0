"""Lays methods' pages out for the site: every `Word: …` line of a docstring becomes a paragraph, a recipe a table."""

import ast
import dataclasses
import re
from typing import Any

import griffe

from softprompt_zoo.config.recipe import Recipe

EQUATIONS = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
WIDTH = 4 + 96
"""Columns of the page, and the indent that makes a block of code of equations."""
PARTS = ("Enters at", "Trained", "Merges to", "Source", "Differs from the source", "PEFT")


class MethodPage(griffe.Extension):
    """Runs while mkdocstrings reads the package."""

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Show the default of a dataclass field, not the call that sets it; and all of a recipe, defaults too."""
        default = re.match(r"dataclasses\.field\(default=([^,)]+)", str(attr.value))
        if default:
            attr.value = default[1]
        if re.match(r"(zoo\.)?Recipe\(", str(attr.value)):
            table = recipe_table(read_recipe(str(attr.value)))
            said = attr.docstring.value + "\n\n" if attr.docstring else ""
            attr.docstring, attr.value = griffe.Docstring(said + table, parent=attr), None

    def on_module(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        """Separate the parts of a method's docstring, which stand on lines of their own in the source."""
        if mod.docstring and mod.path.startswith(("softprompt_zoo.methods.", "softprompt_zoo_")):
            pattern = rf"^({'|'.join(PARTS)}): "
            text = re.sub(pattern, r"\n**\1**: ", mod.docstring.value, flags=re.MULTILINE)
            mod.docstring.value = EQUATIONS.sub(align, text)


def align(equations: re.Match[str]) -> str:
    """Move the notes to the right of equations as far to the left as all of them can stand in one column."""
    lines = [re.split(r"(?<=\S) {4,}", line, maxsplit=1) for line in equations[0].splitlines()]
    column = max((len(equation) for equation, *note in lines if note), default=0) + 3
    shown = []
    for equation, *notes in lines:
        shown.append(equation)
        for note in notes:
            fits = column + len(note) <= WIDTH
            shown[-1:] = [equation.ljust(column) + note] if fits else [equation, " " * 8 + note]
    return "\n".join(shown) + "\n"


def read_recipe(call: str) -> Recipe:
    """Make the recipe of a call, written as in the source, without running the page."""
    arguments: Any = ast.parse(call, mode="eval").body
    return Recipe(**{keyword.arg: ast.literal_eval(keyword.value) for keyword in arguments.keywords})


def recipe_table(recipe: Recipe) -> str:
    """Write a recipe as a table, a row for each of its fields."""
    rows = [(field.name.replace("_", " "), getattr(recipe, field.name)) for field in dataclasses.fields(recipe)]
    lines = [f"| {name} | {value if name == 'source' else f'`{value}`'} |" for name, value in rows]
    return "\n".join(["| of the recipe | value |", "| --- | --- |", *lines])
